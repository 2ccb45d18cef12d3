"""Print what each part found, as the Markdown table of docs/gpu.md: ``python -m benchmarks.gpu.table``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.boxes import ROOT
from benchmarks.gpu.part import MEASURED

RESULTS = ROOT / "benchmarks" / "results" / "gpu"

Found = Mapping[str, Any]


def table(folder: Path = RESULTS) -> str:
    """Return a row for each part, measured or not, and the machine.

    Args:
        folder: Of the result files; it may be missing.

    Raises:
        ValueError: A file is of a rehearsal, whose figures say nothing, or files are of several machines.
    """
    results = {name: _read(path) for name in MEASURED if (path := folder / f"{name}.json").exists()}
    for name, result in results.items():
        if result["tiny"] or result["device"] == "cpu":
            raise ValueError(f"{folder / name}.json is of a rehearsal, and no result; remove it")
    lines = ["| part | what it answers | found | seconds |", "|---|---|---|---|"]
    for name, measured in MEASURED.items():
        found, seconds = "not measured yet", ""
        if name in results:
            result = results[name]
            ended = "" if result["finished"] else f" ({result['ended'] or 'cut off'})"
            found, seconds = "; ".join(SENTENCES[name](result["measured"])) + ended, f"{result['seconds']:.0f}"
        lines.append(f"| {name} | {measured.answers} | {found} | {seconds} |")
    machines = {_machine(result) for result in results.values()}
    if len(machines) > 1:
        raise ValueError(f"the results of {folder} are of several machines: {'; '.join(sorted(machines))}")
    return "\n".join([*lines, *(["", *machines] if machines else [])])


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _machine(result: Found) -> str:
    versions = result["versions"]
    return f"{result['machine']}, driver {versions['driver']}; torch {versions['torch']}, {result['cores']} cores."


def _tests(found: Found) -> list[str]:
    counts = found.get("tests", {})
    return [f"{counts[what]} {what}" for what in ("passed", "failed", "skipped") if counts.get(what)]


def _agreement(found: Found) -> list[str]:
    said = []
    for name, row in found.items():
        if name.endswith("both"):
            said.append(f"{name.removesuffix(', both')}: both students answer {row['answers_alike']:g} % alike")
        else:
            said.append(f"{name}: {row['student_top1']:g} %, {row['seconds']:g} s")
    return said


def _steps(found: Found) -> list[str]:
    said = []
    for name, row in found.items():
        if "ratios" in row:
            said += [f"{name}, {what}: {ratio:g} x bare" for what, ratio in row["ratios"].items()]
        elif "ratio" in row:
            said.append(f"{name}: {row['ratio']:.3g} x bare after {row['seconds to compile']:.0f} s of compiling")
    return said


def _rendering(found: Found) -> list[str]:
    return [f"{name}: {row['views a second']:g} a second" for name, row in found.items() if isinstance(row, Mapping)]


def _published(found: Found) -> list[str]:
    rows = found.get("by shots", {}).items()
    said = [f"{shots} a class: {row['student_top1']:.2f} % ({row['subsets']} subsets)" for shots, row in rows]
    return [f"{found.get('cells', 0)} of {found.get('of', '?')} cells", *said]


def _teacher(found: Found) -> list[str]:
    row = found.get("teacher", {})
    if row.get("top1") is None:
        return [f"{row.get('steps', 0):,} steps"]
    return [f"{row['top1']:g} % in {row['train_seconds']:.0f} s"]


def _student(found: Found) -> list[str]:
    row = found.get("student")
    if row is None:
        return []
    return [f"{row['student_top1']:g} % of the teacher's {row['teacher_top1']:g} % after {row['samples']:,} samples"]


SENTENCES: Mapping[str, Callable[[Found], list[str]]] = {
    "marked-tests": _tests,
    "agreement": _agreement,
    "steps": _steps,
    "rendering": _rendering,
    "published-table": _published,
    "cifar100-teacher": _teacher,
    "unrelated-student": _student,
}


if __name__ == "__main__":
    try:
        print(table(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS))
    except ValueError as error:
        sys.exit(f"benchmarks.gpu.table: {error}")
