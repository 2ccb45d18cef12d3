"""How long cells will take: from finished ones of the same kind, or reckoned from the plan and a few timed forwards."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config

from netgraft.api import cut_and_pair
from netgraft.benchmark.experiment import Cell
from netgraft.data import open_data
from netgraft.evaluation import processor
from netgraft.jobs import DEFAULT_SHOTS, DistillJob
from netgraft.methods import choose
from netgraft.metrics import latency
from netgraft.models import class_count
from netgraft.pairing import Pairing
from netgraft.phases import Budget
from netgraft.views import find_policy

BATCH = 64
START = 8.0  # seconds for imports, reading and proofs
BACKWARD = 3.0  # a step costs so many forwards of the student


@dataclass
class Estimate:
    """Seconds of single cells on this machine.

    Attributes:
        finished: Cells with their results; those of this machine count.
    """

    finished: Sequence[tuple[Cell, Mapping[str, Any]]]
    _pairs: dict[tuple[Any, ...], _Pair] = field(default_factory=dict)

    def seconds(self, cell: Cell) -> float:
        """Estimate one cell.

        Raises:
            RequestError: The cell asks for data, models or settings that don't exist.
        """
        alike = self._measured.get((cell.pair, cell.row))
        return statistics.median(alike) if alike else self._reckoned(cell)

    @cached_property
    def _measured(self) -> dict[tuple[str, str], list[float]]:
        here = processor()
        measured: dict[tuple[str, str], list[float]] = {}
        for cell, result in self.finished:
            if result.get("machine") == here:
                measured.setdefault((cell.pair, cell.row), []).append(result["seconds"])
        return measured

    def _reckoned(self, cell: Cell) -> float:
        job = job_of(cell)
        key = (job.data, job.teacher, job.student, job.init, job.inherit, job.blocks)
        if key not in self._pairs:
            self._pairs[key] = _Pair.measure(job)
        pair = self._pairs[key]
        images = job.images or (job.shots or DEFAULT_SHOTS) * pair.classes
        preset = choose(job.method, job.preset, Budget(images, pair.classes), job.settings)
        read = sum(phase.fit.steps * phase.fit.batch_size for phase in preset.method.plan(pair.pairing).phases)
        policy = preset.views if job.views is None else find_policy(job.views)
        views = min(read, max(images, policy.pool))
        return START + (BACKWARD * read + pair.test) * pair.student + views * pair.teacher


@dataclass(frozen=True)
class _Pair:
    pairing: Pairing
    classes: int
    test: int
    teacher: float
    """Seconds an image."""
    student: float

    @classmethod
    def measure(cls, job: DistillJob) -> _Pair:
        source = open_data(job.data, root=job.data_root)
        teacher, student = job.models(source)
        size = resolve_model_data_config(teacher)["input_size"]
        spent = [latency(model, size, BATCH, repeats=3) / 1000 / BATCH for model in (teacher, student)]
        pairing = cut_and_pair(teacher, student, input_size=size, init=job.init, use=job.inherit, blocks=job.blocks)
        return cls(pairing, class_count(teacher), len(source.test or ()), *spent)


def job_of(cell: Cell) -> DistillJob:
    """Return the job that a cell's command carries out, its seed for the models aside."""
    options = {name: value for name, value in cell.options.items() if name != "precision"}
    if "teacher_weights" in options:
        options["teacher_weights"] = Path(options["teacher_weights"])
    return DistillJob(**options, settings=cell.settings)
