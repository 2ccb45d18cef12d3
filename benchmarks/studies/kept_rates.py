"""How fast a student that brings weights should learn, chosen on photographs that nobody has labelled.

    python -m benchmarks.studies.kept_rates          # what is missing; NETGRAFT_DATA names images and weights
    python -m benchmarks.studies.kept_rates table

``mobilenetv2_100`` with weights of ImageNet's, below ``tf_efficientnet_lite0``. Of the pool's 1,000 photographs 200 are
held back before anything is trained; the agreement with the teacher on those decides, and beside it stands how far the
logits are from its. The validation images are never opened.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from netgraft.data.image_set import ImageSet, PictureStore
from netgraft.data.sources import data_root, open_data
from netgraft.distillation import prepare
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import agreement
from netgraft.methods.kd import KD
from netgraft.methods.netgraft import NetGraft
from netgraft.models.creation import build_kept_student
from netgraft.models.loading import load_teacher
from netgraft.progress import SilentReporter
from netgraft.training.runner import Runner

TEACHER, STUDENT = "tf_efficientnet_lite0", "mobilenetv2_100"

HELD_BACK = 200

RATE = 1e-3
"""The methods' own, which the factors multiply."""

BATCH, STEPS = 32, 50

RESULTS = Path(__file__).parents[1] / "results" / "kept-rates.jsonl"

LABELS = {"netgraft": "netgraft, all at once, plain logits (mse)", "kd": "kd, soft targets at temperature 4"}

SETTINGS = (
    ("netgraft", 0.1, "kept"),
    ("netgraft", 0.1, "batch"),
    ("netgraft", 0.3, "kept"),
    ("kd", 0.1, "kept"),
    ("netgraft", 0.03, "kept"),
    ("kd", 0.3, "kept"),
    ("kd", 0.1, "batch"),
    ("netgraft", 0.3, "batch"),
    ("kd", 0.03, "kept"),
    ("netgraft", 1.0, "kept"),
)
"""Method, factor on its rates, and whether batch norms keep the statistics that they start with."""


def table(path: Path = RESULTS) -> str:
    """Return a line for each setting, in Markdown."""
    lines = [
        "| method | factor on its rates | batch norms' statistics | steps | agreement % | error of the logits |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for one in _known(path):
        statistics = {"kept": "kept", "batch": "of each batch"}[one["statistics"]]
        name, factor = (one["method"], f"{one['factor']:g}") if one["steps"] else ("before training", "-")
        shown = f"{one['steps']} | {one['agreement']:.1f} | {100 * one['error']:.0f} %"
        lines.append(f"| {LABELS.get(name, name)} | {factor} | {statistics if one['steps'] else '-'} | {shown} |")
    return "\n".join(lines)


def _known(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main(arguments: Sequence[str]) -> None:
    """Try what the file lacks, or print what it has."""
    if list(arguments) == ["table"]:
        print(table())
        return
    if arguments:
        sys.exit(f"expected 'table' or nothing, got {' '.join(arguments)}")
    teacher = load_teacher(TEACHER, weights=data_root() / f"{TEACHER}.imagenet.safetensors")
    few, held_back = _halves()
    expected = _logits(teacher, held_back, teacher)
    done = {(one["method"], one["factor"], one["statistics"], one["steps"]) for one in _known(RESULTS)}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for method, factor, statistics in [("none", 0.0, "kept"), *SETTINGS]:
        steps = STEPS if factor else 0
        if (method, factor, statistics, steps) in done:
            continue
        student = _trained(teacher, few, method, factor, statistics, steps)
        got = _logits(student, held_back, teacher)
        error = float((got - expected).square().mean() / (expected - expected.mean(0)).square().mean())
        line = {"method": method, "factor": factor, "statistics": statistics, "steps": steps}
        line |= {"agreement": round(agreement(got, expected), 2), "error": round(error, 5)}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def _halves() -> tuple[list[Any], ImageSet]:
    pool = open_data("imagenet1000").train
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0)).tolist()
    images = pool.load_many(sorted(order))
    held_back = [images[number] for number in sorted(order[:HELD_BACK])]
    few = [images[number] for number in sorted(order[HELD_BACK:])]
    return few, ImageSet("held back", HELD_BACK, PictureStore(held_back))


def _logits(model: nn.Module, images: ImageSet, teacher: nn.Module) -> Tensor:
    return predictions(model, images, resolve_model_data_config(teacher), SilentReporter())[0]


def _trained(teacher: nn.Module, few: list[Any], method: str, factor: float, statistics: str, steps: int) -> nn.Module:
    student, _ = build_kept_student(
        STUDENT, str(data_root() / f"{STUDENT}.imagenet.safetensors"), teacher=teacher, seed=0
    )
    if not steps:
        return student
    rates: dict[str, Any] = {"batch_size": BATCH, "sliced_rate": factor}
    how: Any = KD(steps=steps, lr=RATE, **rates)
    if method == "netgraft":
        how = NetGraft(block_steps=(0,), joins="at-once", join_steps=steps, join_lr=RATE, **rates)
    prepared = prepare(teacher, student, few, method=how, init="keep", runner=Runner())
    kept = prepared.pairing.student if statistics == "kept" else None
    return replace(prepared, plan=replace(prepared.plan, keeps_statistics=kept)).run(reporter=_Lines()).student


class _Lines(SilentReporter):
    """Says now and then how far it is."""

    def progressed(self, done: int, terms: Any) -> None:
        if done % 20 == 0:
            print(done, {name: round(value, 4) for name, value in terms.items()}, flush=True)

    def track(self, items: Any, *, total: int, name: str) -> Iterator[Any]:
        yield from items


if __name__ == "__main__":
    main(sys.argv[1:])
