"""Every table on a page is what its command prints, and every picture is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from benchmarks.render_docs import PAGES, PICTURES, ROOT, printed, shown


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


def test_the_figures_that_help_to_choose_stand_in_the_results() -> None:
    page = (ROOT / "docs" / "which-student.md").read_text(encoding="utf-8")
    results = (ROOT / "docs" / "deriving.md").read_text(encoding="utf-8")
    table = page[page.index("| teacher | images | keep |") :]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.count("|") == 7]
    figures = [(gap, agreement) for *_, gap, agreement, _ in rows if gap.lstrip("-")[:1].isdigit()]
    assert len(figures) == 13
    for gap, agreement in figures:
        assert re.search(rf"\| +{re.escape(gap)} \|.*\| +{re.escape(agreement)} \|", results), (gap, agreement)


def test_the_readme_s_figures_of_a_derived_efficientnet_stand_in_the_result_files() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    said = re.search(r"is ([0-9.]+) points below its own teacher's ([0-9.]+) %.*?, at half of them ([0-9.]+)", text)
    assert said is not None
    folder = ROOT / "benchmarks" / "results" / "derived-imagenet"
    row = "closed-form-a-stem-of-two-convolutions"
    cells = [
        json.loads((folder / f"macs={keep}" / f"{row}-1shot-subset0.json").read_text(encoding="utf-8"))
        for keep in ("0.75", "0.5")
    ]
    assert [float(gap) for gap in (said[1], said[3])] == [round(cell["gap"], 1) for cell in cells]
    assert {float(said[2])} == {cell["teacher_top1"] for cell in cells}
