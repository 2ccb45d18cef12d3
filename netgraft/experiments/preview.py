"""What a distillation will do and need, before anything is written: its plan, its student, time and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from netgraft.data.loader import EVALUATED_TOGETHER
from netgraft.evaluation.metrics import macs
from netgraft.experiments.estimate import Estimate, seconds_per_image
from netgraft.jobs.distill import DistillJob
from netgraft.jobs.prepared_derivation import PreparedDerivation
from netgraft.modules import eval_mode, parameters
from netgraft.plan import Phase

FLOAT = 4  # bytes

TRAINED_COPIES = 4
"""Weights, gradients and both of Adam's averages."""


@dataclass(frozen=True)
class Preview:
    """What will be done.

    Attributes:
        name: Of the run, as its folder under ``runs/``.
        teacher: Name.
        student: Name.
        notes: What the run says before it begins, with its plan where that is known.
        sizes: ``teacher_parameters``, ``teacher_macs``, and ``parameters`` and ``macs`` of a student that is not
            derived.
        later: What follows once the student has been derived, a line a phase.
        seconds: Of the whole run on this machine, about.
        memory: Bytes, about, without the outputs of frozen blocks, which take what is free.
    """

    name: str
    teacher: str
    student: str
    notes: Sequence[str]
    sizes: Mapping[str, int]
    later: Sequence[str]
    seconds: float
    memory: int


def preview(job: DistillJob) -> Preview:
    """Prepare a job and look at it; nothing is written and nothing trained.

    Raises:
        RequestError: As for :meth:`DistillJob.prepare`.
    """
    prepared = job.prepare()
    seconds, later = Estimate([]).reckoned(job), list[str]()
    if isinstance(prepared, PreparedDerivation):
        asked = prepared.asked
        teacher, student, size = asked.teacher, asked.twin, asked.data_config["input_size"]
        phases: Sequence[Phase] = prepared.expected().phases
        later = [phase.length() for phase in phases]
        seconds += prepared.forwards() * seconds_per_image(teacher, size, "32")
    else:
        distillation = prepared.distillation
        teacher, size = distillation.teacher, distillation.data_config["input_size"]
        student, phases = distillation.model, distillation.plan.phases
    sizes = {"teacher_parameters": parameters(teacher), "teacher_macs": macs(teacher, size)}
    if student is not None:
        sizes |= {"parameters": parameters(student), "macs": macs(student, size)}
    named: dict[str, Any] = prepared.config
    return Preview(
        name=prepared.name,
        teacher=named["teacher"],
        student=named["student"],
        notes=prepared.notes,
        sizes=sizes,
        later=later,
        seconds=seconds,
        memory=psutil.Process().memory_info().rss + _needed(phases, teacher, size),
    )


def _needed(phases: Sequence[Phase], teacher: nn.Module, size: tuple[int, int, int]) -> int:
    """Return the bytes of the largest phase or of the evaluation, whichever is more; activations are the teacher's."""
    with _outputs_of(teacher) as outputs, eval_mode(teacher), torch.inference_mode():
        device = next(teacher.parameters()).device
        teacher(torch.zeros(1, *size, device=device))
    # a layer's input and output at once
    evaluation = EVALUATED_TOGETHER * 2 * FLOAT * max(outputs, default=0)
    training = [
        # what was computed forward, and its gradients
        phase.schedule.batch_size * 2 * FLOAT * sum(outputs) + TRAINED_COPIES * FLOAT * parameters(phase.trainable)
        for phase in phases
    ]
    return max(evaluation, *training, 0)


@contextmanager
def _outputs_of(model: nn.Module) -> Iterator[list[int]]:
    """Note the number of values that each layer gives out."""
    found: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append(output.numel())

    handles = [module.register_forward_hook(note) for module in model.modules() if not [*module.children()]]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
