"""The notebooks of the documentation run from front to end, and what they show is what they print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import netgraft
from netgraft.data.sources import open_data
from netgraft.zoo import DIGITS_MEAN, DIGITS_STD

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")

from benchmarks.run_notebooks import NOTEBOOKS, as_shown, executed  # noqa: E402

FIRST_HOUR = NOTEBOOKS / "first-hour.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def run(folder: Path) -> Any:
    return executed(FIRST_HOUR, folder)


def shown(notebook: Any) -> list[str]:
    """What stands below each cell of code."""
    return [
        "".join(output["text"] if "text" in output else output["data"]["text/plain"] for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_first_hour_ends_with_a_student_that_is_as_good_as_it_says(run: Any, folder: Path) -> None:
    *_, evaluated, predicted, counted = shown(run)
    student = netgraft.load_student(folder / "student")
    assert int(counted) == sum(weight.numel() for weight in student.parameters())
    test = open_data("digits").test
    assert test is not None
    pixels = torch.stack([torch.tensor(list(image.tobytes())).float() for image in test.load_many(range(len(test)))])
    images = ((pixels / 255 - DIGITS_MEAN[0]) / DIGITS_STD[0]).view(-1, 1, 8, 8)
    with torch.no_grad():
        logits = student(images)
    answers = logits.argmax(1)
    top1 = 100 * (answers == torch.tensor(test.labels)).float().mean()
    assert float(re.findall(r"'top1': ([0-9.]+)", evaluated)[0]) == pytest.approx(float(top1), abs=0.01)
    assert top1 > 95
    assert [int(line.split()[0]) for line in predicted.splitlines()] == answers[:3].tolist()


def test_progress_in_a_notebook_is_a_line_for_each_stretch(run: Any) -> None:
    lines = shown(run)[2].splitlines()
    assert [line for line in lines if line.startswith("[1/1] ")] == [lines[-3]]
    assert re.fullmatch(r"\[1/1\] join blocks 1-4: 300 steps in (\d+ s|\d+ min)", lines[-3])
    assert "solving layers: 13 done" in lines
    assert max(map(len, lines)) <= 100


def test_what_the_notebook_shows_is_of_a_run_like_this_one(run: Any) -> None:
    committed = nbformat.read(FIRST_HOUR, as_version=4)
    assert not [output for cell in committed.cells for output in cell.get("outputs", ()) if "ename" in output]

    def words(text: str) -> set[str]:
        """Numbers, precision and the memory at hand differ from machine to machine; lines may come and go with them."""
        of_this_machine = {"precision", "bfloat", "float", "runs", "times", "faster", "slower", "here"}
        return set(re.findall(r"[a-z]{4,}", text)) - of_this_machine

    for before, now in zip(shown(committed), shown(run), strict=True):
        assert bool(before) == bool(now)
        assert words(before) <= words(now) | {"teacher", "student", "image"}
        # nothing of the machine that it ran on
        assert not re.search(r"(/[a-z]+){2}", before)


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("a\n", "a\n"),
        ("\rone: 1\rone: 2\rone: 2 done \nnext", "one: 2 done\nnext"),
        ("", ""),
    ],
)
def test_lines_that_are_rewritten_show_what_they_said_last(written: str, left: str) -> None:
    assert as_shown(written) == left
