"""How long cells will take: from finished ones of the same kind, or reckoned from the plan and a few timed forwards."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.data.sources import open_data
from netgraft.data.view_policy import find_policy
from netgraft.evaluation.environment import processor
from netgraft.evaluation.metrics import latency, macs
from netgraft.experiments.specification import Cell
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.jobs.distill import DEFAULT_SHOTS, DistillJob
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.models.creation import class_count
from netgraft.modules import eval_mode, macs_along
from netgraft.plan import Phase
from netgraft.training.frozen_cache import frozen_prefix
from netgraft.training.precision import autocast

BATCH = 64

START = 8.0  # seconds for imports, reading and proofs

BACKWARD = 3.0  # a step costs so many forwards of what isn't frozen in front


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
            if result["machine"] == here:
                measured.setdefault((cell.pair, cell.row), []).append(result["seconds"])
        return measured

    def _reckoned(self, cell: Cell) -> float:
        job, precision = job_of(cell), cell.options.get("precision", "auto")
        key = (job.data, job.teacher, job.student, job.image_size, job.init, job.inherit, job.blocks, precision)
        if key not in self._pairs:
            self._pairs[key] = _Pair.measure(job, precision)
        pair = self._pairs[key]
        images = job.images or (job.shots or DEFAULT_SHOTS) * pair.classes
        preset = choose(job.method, job.preset, Budget(images, pair.classes), job.settings)
        phases = preset.method.plan(pair.pairing).phases
        policy = preset.views if job.views is None else find_policy(job.views)
        views = min(sum(phase.fit.steps * phase.fit.batch_size for phase in phases), max(images, policy.pool))
        return START + sum(map(pair.training, phases)) + views * pair.teacher + pair.test * pair.student


@dataclass(frozen=True)
class _Pair:
    pairing: Pairing
    size: tuple[int, int, int]
    classes: int
    test: int
    teacher: float
    """Seconds an image, in the run's precision."""
    student: float
    """In float32, as it is evaluated."""
    macs: int
    """Of the teacher."""

    @classmethod
    def measure(cls, job: DistillJob, precision: str) -> _Pair:
        source = open_data(job.data, root=job.data_root)
        teacher, student = job.models(source)
        size = resolve_model_data_config(teacher)["input_size"]
        precisions = ("32", "bf16") if precision == "auto" else (precision,)
        spent = min(_seconds(teacher, size, each) for each in precisions), _seconds(student, size, "32")
        count = macs(teacher, size)
        pairing = cut_and_pair(teacher, student, input_size=size, init=job.init, use=job.inherit, blocks=job.blocks)
        return cls(pairing, size, class_count(teacher), len(source.test or ()), *spent, count)

    def training(self, phase: Phase) -> float:
        """Seconds of a phase's steps: what is frozen in front of its trainable part is computed once, elsewhere."""
        frozen, _ = frozen_prefix(phase.model, phase.trainable)
        with eval_mode(phase.model), torch.no_grad():
            running = sum(macs_along(phase.model, torch.zeros(1, *self.size))[len(frozen) :])
        return BACKWARD * phase.fit.steps * phase.fit.batch_size * running / self.macs * self.teacher


def _seconds(model: nn.Module, size: tuple[int, int, int], precision: str) -> float:
    with autocast(precision, torch.device("cpu")):
        return latency(model, size, BATCH, repeats=3) / 1000 / BATCH


def job_of(cell: Cell) -> DistillJob:
    """Return the job that a cell's command carries out, its seed for the models aside."""
    options = {name: value for name, value in cell.options.items() if name != "precision"}
    if "teacher_weights" in options:
        options["teacher_weights"] = Path(options["teacher_weights"])
    return DistillJob(**options, settings=cell.settings)
