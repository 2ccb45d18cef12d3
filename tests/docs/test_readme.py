"""The README's Python lines run as they stand, and every table is what its command prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm

from benchmarks.render_docs import PAGES, PICTURES, ROOT, printed, shown

README = ROOT / "README.md"


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


@pytest.mark.parametrize(
    ("page", "marker", "command"), [(page, *item) for page, tables in PAGES.items() for item in tables.items()]
)
def test_the_tables_are_made_from_the_committed_files(page: str, marker: str, command: Sequence[str]) -> None:
    table = shown((ROOT / page).read_text(encoding="utf-8"), marker)
    assert table == printed(command)
    assert table.count("\n") > 3


@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_is_there_and_is_shown_on_a_page(picture: str) -> None:
    assert (ROOT / picture).read_text(encoding="utf-8").rstrip().endswith("</svg>")
    links = [
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert (ROOT / picture).resolve() in links
