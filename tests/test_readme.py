"""The README's Python lines run as they stand, and every table is what its command prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm

README = Path(__file__).parent.parent / "README.md"


def test_the_python_lines_make_a_student_that_timm_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    student = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    plain = timm.create_model("digits_vgg7_bn_half")
    assert {name: value.shape for name, value in student.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }


TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "README.md": {"results": ("benchmarks.table", "benchmarks/results/cifar10-jpeg")},
    "docs/baselines.md": {
        "results: digits": ("netgraft.cli.main", "table", "benchmarks/results/baselines-digits"),
        "results: cifar10": ("netgraft.cli.main", "table", "benchmarks/results/baselines-cifar10", "--layout", "long"),
    },
    "docs/splitting.md": {"results: splitting": ("benchmarks.splitting.table",)},
    "docs/speed.md": {"results": ("benchmarks.speed.table", "benchmarks/results/speed")},
}
"""Page -> marker -> the command that prints what stands behind it."""


@pytest.mark.parametrize(
    ("page", "marker", "command"), [(page, *item) for page, tables in TABLES.items() for item in tables.items()]
)
def test_the_tables_are_made_from_the_committed_files(page: str, marker: str, command: tuple[str, ...]) -> None:
    made = subprocess.run(
        [sys.executable, "-m", *command], cwd=README.parent, capture_output=True, text=True, check=True
    ).stdout
    pattern = f"<!-- {marker} -->\n(.*?)\n<!-- end of results -->"
    [shown] = re.findall(pattern, (README.parent / page).read_text("utf-8"), re.DOTALL)
    assert shown == made.rstrip()
    assert shown.count("\n") > 3
