"""The tests that need a CUDA device, and what became of each kind."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # nosec B405  # of a file that pytest has written just before

from benchmarks.gpu.boxes import ROOT
from benchmarks.gpu.result_file import PartResult, Setting
from netgraft.errors import RunError

OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}
"""What JUnit calls an end other than passing."""

FINE = (0, 1, 5)
"""Exit codes of pytest where it ran: all passed, some failed, none was there."""


def measure(setting: Setting, result: PartResult) -> None:
    """Run the tests and keep a summary."""
    report = setting.out / "work" / "marked-tests.xml"
    command = [sys.executable, "-P", "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
    # pytest-xdist may be missing, and one device is there for all
    command += ["-o", "addopts=--strict-markers", f"--junitxml={report}", *map(str, _files_with_marks())]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode  # nosec B603  # names of own files
    if code not in FINE:
        raise RunError(f"pytest ended with exit code {code}; its output stands in the part's log")
    result.put("tests", summary(report), dtype="float32")


def _files_with_marks() -> Iterator[Path]:
    """Only these are collected: others may need packages that aren't there."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.cuda" in path.read_text(encoding="utf-8"):
            yield path.relative_to(ROOT)


def summary(report: Path) -> dict[str, Any]:
    """Return how many tests passed, failed and were skipped, and why.

    Args:
        report: What pytest wrote, in the form of JUnit.
    """
    counts: Counter[str] = Counter(passed=0, failed=0, skipped=0)
    reasons: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):  # nosec B314  # pytest's own
        why = next((child for child in case if child.tag in OUTCOMES), None)
        counts["passed" if why is None else OUTCOMES[why.tag]] += 1
        if why is not None:
            message = (why.get("message") or "").partition("\n")[0]
            reasons[f"{case.get('classname')}.{case.get('name')}"] = f"{OUTCOMES[why.tag]}: {message}"
    return {**counts, "reasons": reasons}
