"""How near the estimate of the accuracy lost comes, which needs no labels, to the truth, which does.

    python -m benchmarks.studies.unlabelled_estimates          # finished tasks are not computed again
    python -m benchmarks.studies.unlabelled_estimates table    # as Markdown

Students of several sizes are derived in closed form, some of them trained a little. Of each, 500 test photographs at a
time are held back without their labels: both networks' answers to them make an estimate and its interval. The labels
then say what was really lost on these photographs, and on all of the test set. Which estimator is used was chosen on
the tasks in ``CHOSEN_ON``; the others say how good it is.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from netgraft.data.image_set import DataSource
from netgraft.data.sources import data_root, open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.derivation import Deriver
from netgraft.deriving.budget import budget_of
from netgraft.deriving.options import DerivingOptions
from netgraft.distillation import prepare
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import agreement, top1
from netgraft.evaluation.without_labels import estimated_gap
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.models.loading import load_teacher
from netgraft.progress import SilentReporter
from netgraft.reports.formats import markdown
from netgraft.reports.summaries import Statistic
from netgraft.reports.tables import Column, Line, Table
from netgraft.training.runner import Runner

RESULTS = Path(__file__).parents[1] / "results" / "estimates"

WORK = RESULTS / "work"
"""Answers of all networks, from which the estimates are computed in a second; not kept for others."""


@dataclass(frozen=True)
class Task:
    """A data set, a teacher, and the students that are derived of it.

    Attributes:
        data: With test labels.
        teacher: Its name.
        weights: Of the teacher; its own if None.
        shots: Images a class, one series of students each.
        keep: Parts of the teacher's multiply-accumulates.
        trained: Which of these students are trained as well.
        steps: Of their training.
        allocation: How widths are chosen for a budget; ``uniform`` asks for no library, which takes long to make.
    """

    data: str
    teacher: str
    weights: Path | None
    shots: tuple[int, ...]
    keep: tuple[float, ...]
    trained: tuple[float, ...] = ()
    steps: int = 200
    allocation: str = DerivingOptions().allocation


OWN = Path(__file__).parents[1] / "teachers"

TASKS = {
    "digits": Task("digits", "digits_vgg7_bn", None, (1, 10), (0.8, 0.5, 0.3, 0.2, 0.1, 0.05), (0.3, 0.1)),
    "cifar100": Task(
        "cifar100-q95",
        "cifar_resnet20",
        OWN / "cifar_resnet20.cifar100-q95.safetensors",
        (1, 10),
        (0.9, 0.8, 0.65, 0.5, 0.35),
        (0.8, 0.5),
    ),
    "cifar10": Task(
        "cifar10-jpeg",
        "cifar_vgg16_bn",
        Path("cifar_vgg16_bn.cifar10-jpeg.safetensors"),
        (1,),
        (0.9,),
        allocation="uniform",
    ),
    "imagenet": Task(
        "imagenet1000",
        "tf_efficientnet_lite0",
        Path("tf_efficientnet_lite0.imagenet.safetensors"),
        (1,),
        (0.95, 0.9, 0.8),
        allocation="uniform",
    ),
}

CHOSEN_ON = ("digits", "cifar100")
"""The tasks by whose labels the estimator was chosen among several; they prove nothing about it."""

HELD_OUT = 500

MOST = 4000
"""Test photographs of a task: eight hold-outs."""


def students_of(task: Task, source: DataSource, teacher: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield students by name; the few images are drawn with seed 0."""
    config = resolve_model_data_config(teacher)
    runner = Runner(precision="32")
    for shots in task.shots:
        labels = source.train_labels("so no subset can be drawn")
        subset = FewShotSubset.draw(labels, shots=shots, seed=0, dataset=source.name)
        images = source.train.load_many(subset.indices)
        views = Views.of(images, VIEW_POLICIES["rich"], config, seed=0)
        deriver = Deriver(teacher, views, config, options=DerivingOptions(allocation=task.allocation))
        for keep in task.keep:
            derivation = deriver.derive(budget_of({"macs": keep}))
            name = f"{shots} shot, macs={keep:g}"
            yield name, copy.deepcopy(derivation.student)
            if keep in task.trained:
                chosen = choose("netgraft", "default", Budget(len(images), 10, solved=True), {"steps": str(task.steps)})
                prepared = prepare(
                    teacher,
                    derivation.student,
                    images,
                    method=chosen.method,
                    views=views,
                    runner=runner,
                    derivation=derivation,
                )
                yield f"{name}, {task.steps} steps", prepared.run().student


def answers(name: str) -> dict[str, Tensor]:
    """Return the test labels (N,) and every network's logits (N, K), each computed once and kept in ``WORK``."""
    task, path = TASKS[name], WORK / f"{name}.safetensors"
    kept = load_file(path) if path.exists() else {}
    if "finished" in kept:
        return {key: value for key, value in kept.items() if key != "finished"}
    source = open_data(task.data)
    assert source.test is not None
    weights = task.weights
    if weights is not None and not weights.exists():
        weights = data_root() / weights
    teacher = load_teacher(task.teacher, weights=weights)
    config = resolve_model_data_config(teacher)
    # archives are sorted by class, and a hold-out isn't
    order = torch.randperm(len(source.test), generator=torch.Generator().manual_seed(0))[:MOST]
    photographs = source.test.part(order.tolist(), f"{source.test.name}/shuffled")
    WORK.mkdir(parents=True, exist_ok=True)
    if "teacher" not in kept:
        logits, labels = predictions(teacher, photographs, config, SilentReporter())
        kept = {"labels": labels, "teacher": logits.contiguous()}
    for student, network in students_of(task, source, teacher):
        if student not in kept:
            kept[student] = predictions(network, photographs, config, SilentReporter())[0].contiguous()
            save_file(kept, path)
            print(f"{name}: {student}", flush=True)
    save_file({**kept, "finished": torch.ones(1)}, path)
    return kept


def measure(labels: Tensor, teacher: Tensor, student: Tensor) -> dict[str, float]:
    """Return what is estimated from logits (N, K) alone, and what is true by the labels (N,)."""
    found = estimated_gap(teacher, student)
    gap = top1(teacher, labels) - top1(student, labels)
    figures = {
        "agreement": agreement(teacher, student),
        "gap": gap,
        "estimated_gap": found.middle,
        "low": found.low,
        "high": found.high,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def run(name: str) -> None:
    """Measure each student of a task on each hold-out, unless the file is there."""
    path = RESULTS / f"{name}.json"
    if path.exists():
        return
    found = answers(name)
    labels, teacher = found.pop("labels"), found.pop("teacher")
    cells = []
    for student, logits in sorted(found.items()):
        for start in range(0, len(labels) - HELD_OUT + 1, HELD_OUT):
            part = slice(start, start + HELD_OUT)
            figures = measure(labels[part], teacher[part], logits[part])
            # the gap on all of the test set is another truth that the interval should hold
            over_all = round(top1(teacher, labels) - top1(logits, labels), 4)
            cells.append({"student": student, "start": start, **figures, "gap_over_all": over_all})
    task = TASKS[name]
    content = {"data": task.data, "teacher": task.teacher, "held_out": HELD_OUT, "cells": cells}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(cells)} cells", flush=True)


BANDS = ((95.0, "95 % or more"), (85.0, "85 to 95 %"), (0.0, "less than 85 %"))
"""Lowest agreement, and what the table calls it."""


def table(folder: Path = RESULTS) -> str:
    """Return a line for each task and band of agreement."""
    columns = (
        Column("task", "test photographs, teacher"),
        Column("band", "agreement"),
        Column("students", "students", "number"),
        Column("n", "cells", "number"),
        Column("truth", "really lost", "statistic"),
        Column("estimate", "estimated", "statistic"),
        Column("error", "off by", "number"),
        Column("near", "within a point", "number"),
        Column("held", "interval holds it", "number"),
        Column("held_all", "and that of all photographs", "number"),
        Column("width", "its width", "number"),
    )
    lines = []
    for name in TASKS:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        for low, high, band in zip(*_bounds(), [words for _, words in BANDS], strict=True):
            cells = [cell for cell in result["cells"] if low <= cell["agreement"] < high]
            if cells:
                what = f"{result['data']}, {result['teacher']}" + (" *" if name in CHOSEN_ON else "")
                lines.append(Line((what, band, *_summary(cells)), 0))
    return markdown(Table("", columns, tuple(lines), notes=(NOTE,)))


def _bounds() -> tuple[list[float], list[float]]:
    lows = [low for low, _ in BANDS]
    return lows, [100.0001, *lows[:-1]]


def _summary(cells: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    errors = [abs(cell["estimated_gap"] - cell["gap"]) for cell in cells]
    return (
        len({cell["student"] for cell in cells}),
        len(cells),
        Statistic.of(cell["gap"] for cell in cells),
        Statistic.of(cell["estimated_gap"] for cell in cells),
        f"{statistics.fmean(errors):.2f}",
        _share(error <= 1 for error in errors),
        _share(cell["low"] <= cell["gap"] <= cell["high"] for cell in cells),
        _share(cell["low"] <= cell["gap_over_all"] <= cell["high"] for cell in cells),
        f"{statistics.fmean(cell['high'] - cell['low'] for cell in cells):.1f}",
    )


def _share(hits: Iterable[bool]) -> str:
    counted = list(hits)
    return f"{100 * sum(counted) / len(counted):.0f} %"


NOTE = (
    f"A cell is a student and {HELD_OUT} photographs. Really lost, estimated, off by (mean absolute difference) and "
    "width in points of top-1; ± is the standard deviation over the cells, students of all sizes together. * The "
    "temperatures were chosen on these."
)


def main(arguments: Sequence[str]) -> None:
    """Run everything, or print what there is."""
    if arguments == ["table"]:
        print(table())
        return
    if unknown := [name for name in arguments if name not in TASKS]:
        sys.exit(f"expected nothing, 'table' or some of {', '.join(TASKS)}, got {unknown[0]}")
    for name in arguments or TASKS:
        run(name)


if __name__ == "__main__":
    main(sys.argv[1:])
