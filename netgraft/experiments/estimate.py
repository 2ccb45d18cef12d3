"""How long cells will take: from finished ones of the same kind, or reckoned from the plan and a few timed forwards."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.data.image_set import DataSource
from netgraft.data.sources import open_data
from netgraft.data.threads import computing_with
from netgraft.data.view_policy import find_policy
from netgraft.derivation import VIEWS, expected_forwards, sampled, taken_apart
from netgraft.distillation import recovering
from netgraft.evaluation.environment import processor
from netgraft.evaluation.metrics import macs
from netgraft.experiments.specification import Cell
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.jobs.distill import DEFAULT_SHOTS, DistillJob, Start
from netgraft.methods.method import Budget, Method
from netgraft.methods.registry import choose
from netgraft.models.creation import class_count
from netgraft.modules import eval_mode, macs_along
from netgraft.plan import Phase
from netgraft.training.frozen_cache import split_before_training
from netgraft.training.precision import autocast, timed_images

START = 8.0  # seconds for imports, reading and proofs

BACKWARD = 3.0  # a step costs so many forwards of what isn't frozen in front

TIMING = 0.4  # seconds after which a model's speed is known well enough

FORWARDS = 2  # that are timed at least, whatever they take; the first is slower

PRODUCTS = 4e9  # multiply-accumulates that make a telling forward

FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16")  # instructions without which a CPU computes it more slowly than float32


ROUNDS = 4  # in which half of a cost goes


@dataclass
class Estimate:
    """Seconds of single cells on this machine.

    What cells have in common is opened, paired and timed once.

    Attributes:
        finished: Cells with their results; those of this machine count.
    """

    finished: Sequence[tuple[Cell, Mapping[str, Any]]]
    _sources: dict[str, DataSource] = field(default_factory=dict)
    _models: dict[tuple[Any, ...], _Models] = field(default_factory=dict)
    _pairings: dict[tuple[Any, ...], Pairing] = field(default_factory=dict)
    _workloads: dict[tuple[Any, ...], _Workload] = field(default_factory=dict)
    _speeds: dict[tuple[Any, ...], float] = field(default_factory=dict)
    _starts: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _counted: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def is_measured(self, cell: Cell) -> bool:
        """Whether cells of its row have been finished on this machine."""
        return (cell.pair, cell.row) in self._measured

    def seconds(self, cell: Cell) -> float:
        """Return the median of the row's finished cells, or a guess where there is none.

        Raises:
            RequestError: The cell asks for data, models or settings that don't exist.
        """
        alike = self._measured.get((cell.pair, cell.row))
        return statistics.median(alike) if alike else self.reckoned(cell.job()) + self.deriving(cell.job())

    @cached_property
    def _measured(self) -> dict[tuple[str, str], list[float]]:
        here = processor()
        measured: dict[tuple[str, str], list[float]] = {}
        for cell, result in self.finished:
            # a tampered one may lack them, or hold something else
            if result.get("machine") == here and isinstance(result.get("seconds"), int | float):
                measured.setdefault((cell.pair, cell.row), []).append(result["seconds"])
        return measured

    def reckoned(self, job: DistillJob) -> float:
        """Return a guess from the plan and a few timed forwards.

        Raises:
            RequestError: The job asks for data, models or settings that don't exist.
        """
        source = self._source(job)
        models = self._loaded(job, source)
        # images without classes are drawn by their number alone
        classes = source.train.classes or models.classes
        images = job.images or (job.shots or DEFAULT_SHOTS) * classes
        budget = Budget(images, classes)
        preset = choose(job.method, job.preset, budget, job.settings)
        start = Start(self._start(job, source, models, preset.init))
        preset = choose(job.method, job.preset, start.known_to(budget), job.settings)
        workload = self._workload(job, models, preset.method, kept=start.init == "keep")
        if job.deriving.recovery_steps and models.student_is_derived:
            method = recovering(preset.method, job.deriving.recovery_steps)
            workload = workload.and_more(
                self._workload(job, models, method, kept=False), (job.deriving.rounds or ROUNDS) - 1
            )
        policy = preset.views if job.views is None else find_policy(job.views)
        views = workload.shown if policy.pool is None else min(workload.shown, max(images, policy.pool))
        forwards = views + BACKWARD * workload.trained
        teacher = min(
            self._speed(job.teacher, models.teacher, models, each) for each in _precisions(job.compute.precision)
        )
        # evaluated in float32
        student = self._speed(job.student, models.student, models, "32")
        return START + forwards * teacher + len(source.test or ()) * student

    def deriving(self, job: DistillJob) -> float:
        """Return a guess at what it takes to derive a student, without training; 0 where one is named.

        Cells that derive from one library each count it, though it is made once.

        Raises:
            RequestError: The job asks for data or models that don't exist, or the teacher can't become narrower.
        """
        models = self._loaded(job, self._source(job))
        if not models.student_is_derived:
            return 0.0
        places = self._places(job, models) if job.deriving.scores else 0
        forwards = expected_forwards(sampled(VIEWS, models.size), places) * (job.deriving.rounds or 1)
        return forwards * self._speed(job.teacher, models.teacher, models, "32")

    def _places(self, job: DistillJob, models: _Models) -> int:
        """Count what is tried at several widths."""
        init: Literal["solve", "slice"] = "slice" if job.pairing.init == "slice" else "solve"
        # what is protected is tried too
        key = (job.data, job.teacher, job.teacher_weights, job.image_size, job.deriving, init)
        if key not in self._counted:
            with computing_with(1):
                anatomy, _ = taken_apart(models.teacher, models.size, job.deriving, init, ())
            self._counted[key] = len(anatomy.all_places)
        return self._counted[key]

    def _source(self, job: DistillJob) -> DataSource:
        if job.data not in self._sources:
            self._sources[job.data] = open_data(job.data, root=job.data_root)
        return self._sources[job.data]

    def _loaded(self, job: DistillJob, source: DataSource) -> _Models:
        key = _models_key(job)
        if key not in self._models:
            # a derived student is reckoned as large as its teacher: how large it gets is not known yet
            alone = job.derives(source)
            teacher, student = (job.teacher_model(source), job.teacher_model(source)) if alone else job.models(source)
            size = resolve_model_data_config(teacher)["input_size"]
            with computing_with(1):
                self._models[key] = _Models(
                    key, alone, teacher, student, size, class_count(teacher), macs(teacher, size)
                )
        return self._models[key]

    def _start(self, job: DistillJob, source: DataSource, models: _Models, of_preset: str) -> str:
        asked = (*models.key, job.pairing.init, of_preset)
        if asked not in self._starts:
            student = None if models.student_is_derived else models.student
            self._starts[asked] = job.start(source, models.teacher, student, of_preset).init
        return self._starts[asked]

    def _workload(self, job: DistillJob, models: _Models, method: Method, *, kept: bool) -> _Workload:
        # how the student starts decides rates alone, unless it keeps its weights; what is asked for may be impossible
        options = replace(job.pairing, init="random") if job.pairing.init in {"auto", "solve"} else job.pairing
        options = replace(options, init="keep") if kept else options
        if models.student_is_derived:
            options = replace(options, inherit="none")  # the whole twin would be inherited
        paired_by = (*models.key, options)
        if (*paired_by, method) not in self._workloads:
            with computing_with(1):
                if paired_by not in self._pairings:
                    self._pairings[paired_by] = cut_and_pair(
                        models.teacher, models.student, options, input_size=models.size
                    )
                phases = method.plan(self._pairings[paired_by]).phases
                self._workloads[*paired_by, method] = _Workload.of(phases, models)
        return self._workloads[*paired_by, method]

    def _speed(self, name: str | None, model: nn.Module, models: _Models, precision: str) -> float:
        key = (name or model, models.size, models.classes, precision)
        if key not in self._speeds:
            self._speeds[key] = seconds_per_image(model, models.size, precision)
        return self._speeds[key]


@dataclass(frozen=True)
class _Models:
    key: tuple[Any, ...]
    student_is_derived: bool
    teacher: nn.Module
    student: nn.Module
    size: tuple[int, int, int]
    classes: int
    macs: int
    """Of the teacher."""


def _models_key(job: DistillJob) -> tuple[Any, ...]:
    # models that are not named are the data set's own
    named = job.teacher is not None and job.student is not None
    weights = (job.teacher_weights, job.student_weights)
    return (None if named else job.data, job.teacher, job.student, job.keep, *weights, job.image_size)


@dataclass(frozen=True)
class _Workload:
    """What a plan's steps compute.

    Attributes:
        shown: Views, each as often as it is shown.
        trained: Forwards of the teacher that cost as much as all forwards of what isn't frozen in front.
    """

    shown: int
    trained: float

    def and_more(self, other: _Workload, times: int) -> _Workload:
        """Return this and so many times the other."""
        return _Workload(self.shown + times * other.shown, self.trained + times * other.trained)

    @classmethod
    def of(cls, phases: Sequence[Phase], models: _Models) -> _Workload:
        shown = [phase.schedule.steps * phase.schedule.batch_size for phase in phases]
        trained = sum(views * _trained_macs(phase, models.size) for views, phase in zip(shown, phases, strict=True))
        return cls(sum(shown), trained / models.macs)


def _trained_macs(phase: Phase, size: tuple[int, int, int]) -> int:
    """Count what a step costs a view; what is frozen in front of the trainable part is computed once, elsewhere."""
    frozen, _ = split_before_training(phase.model, phase.trainable)
    with eval_mode(phase.model), torch.no_grad():
        return sum(macs_along(phase.model, torch.zeros(1, *size))[len(frozen) :])


def seconds_per_image(model: nn.Module, size: tuple[int, int, int], precision: str) -> float:
    """Time forwards in eval mode on the CPU, on one thread and on all.

    Several threads wait for one another, so that other work on the machine can make them slower than one.

    Args:
        model: Takes images in.
        size: Of an image, (C, H, W).
        precision: ``32`` or ``bf16``.

    Returns:
        The shortest time: whatever disturbs a forward can only make it longer.
    """
    with computing_with(1):
        count = max(1, min(timed_images(size), int(PRODUCTS / max(1, macs(model, size)))))
    images = torch.zeros(count, *size)
    seconds: list[float] = []
    for threads in {1, torch.get_num_threads()}:
        with (
            computing_with(threads),
            eval_mode(model),
            autocast(precision, torch.device("cpu")),
            torch.inference_mode(),
        ):
            seconds += _timed(lambda: model(images.clone()))
    return min(seconds) / count


def _timed(run: Callable[[], object]) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < FORWARDS or sum(seconds) < TIMING:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def _precisions(asked: str) -> tuple[str, ...]:
    """Precisions in which the teacher may run; what can't be the faster one is not timed."""
    if asked != "auto":
        return (asked,)
    return ("32", "bf16") if any(flag in processor() for flag in FAST_BFLOAT16) else ("32",)
