"""Result files and experiments as ``netgraft table`` finds them, for several test files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netgraft.experiments.results import load
from netgraft.reports.summaries import Summary, summarize

DIGEST = "0123456789abcdef" * 4


RESULT: dict[str, Any] = {
    "row": "kd",
    "pair": "",
    "data": "digits",
    "teacher": "big",
    "student": "small",
    "method": "kd",
    "preset": "default",
    "settings": {},
    "views": "rich: random crops; 16,384 views",
    "init": "slice",
    "inherit": "auto",
    "labels": "the teacher's answers: unlabeled track",
    "seed": 0,
    "precision": "auto",
    "steps": 1450,
    "computed_in": "32",
    "teacher_digest": DIGEST,
    "teacher_top1": 98.0,
    "student_top1": 97.5,
    "gap": 0.5,
    "agreement": 99.0,
    "test_images": 600,
    "parameters": 84650,
    "subset_seed": 0,
    "shots": 10,
    "images": 100,
    "selection": "none: last iterate",
    "versions": {"netgraft": "0.1.0", "torch": "2.15.0"},
    "device": "cpu",
    "machine": "AMD EPYC",
    "threads": 1,
    "seconds": 10.0,
}


TWO_ROWS = """
title = "Two rows"
[common]
data = "digits"
shots = [1, 10]
[[run]]
name = "zero"
method = "none"
[[run]]
name = "all"
method = "kd"
"""


PUBLISHED = """
[[published]]
name = "Theirs"
source = "Someone et al., 2021"
conditions = "best epoch"
shots = [1, 10]
top1 = [90.74, 92.89]
sd = [0.49, 0.06]
n = 5
teacher_top1 = 92.83
[[published]]
name = "Elsewhere"
source = "Table 2"
shots = 10
top1 = 88.15
"""


def write(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**RESULT, **changes}), encoding="utf-8")
    return path


def write_runs(folder: Path, row: str, gaps: Sequence[float], **changes: Any) -> None:
    """A result for each gap, on subsets 0, 1, ..."""
    differing = [str(changes[name]) for name in ("data", "student", "shots", "images") if name in changes]
    name = "-".join([row, *differing])
    for number, gap in enumerate(gaps):
        figures = {"row": row, "gap": gap, "student_top1": 98.0 - gap, "subset_seed": number, "seed": number}
        write(folder, f"{name}-{number}".replace("/", "_"), **{**figures, **changes})


def write_experiment(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(text, encoding="utf-8")


def summaries(*folders: Path) -> list[Summary]:
    return summarize(load(folders))


def body(text: str) -> list[list[str]]:
    """Cells of a Markdown table, without its heading."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def heading(text: str) -> list[str]:
    return [cell.strip() for cell in next(x for x in text.splitlines() if x.startswith("| ")).strip("|").split(" | ")]
