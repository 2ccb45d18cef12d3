"""What a distillation will do and need, before anything is written: its plan, its student, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from netgraft.evaluation.metrics import macs
from netgraft.experiments.estimate import Estimate, seconds_per_image
from netgraft.jobs.distill import DistillJob
from netgraft.jobs.prepared_derivation import PreparedDerivation
from netgraft.modules import eval_mode, images_at_once, parameters
from netgraft.plan import Phase

FLOAT = 4  # bytes

TRAINED_COPIES = 4
"""Weights, gradients and both of Adam's averages."""


COPIES = 1.5
"""Of what a step computes, for the libraries keep some in other orders; measured on VGG, ResNet, MobileNetV2,
EfficientNet-Lite and ViT on the CPU, where a step takes 0.8 to 1.0 of what is reckoned so."""


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
    device = next(teacher.parameters()).device
    outputs = _values_of(teacher, torch.zeros(1, *size, device=device))
    # a layer's input and output at once
    evaluation = images_at_once(size, device) * 2 * FLOAT * max(outputs, default=0)
    training = [
        # what was computed forward, and the gradients on both sides of a layer
        COPIES * phase.schedule.batch_size * FLOAT * (sum(outputs) + 2 * max(outputs, default=0))
        + TRAINED_COPIES * FLOAT * parameters(phase.trainable)
        for phase in phases
    ]
    return int(max(evaluation, *training, 0))


def _values_of(model: nn.Module, images: Tensor) -> list[int]:
    """Return how many values each layer gives out; of layers that work in place, or hand on what came in, once."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append(output)

    handles = [module.register_forward_hook(keep) for module in model.modules() if not [*module.children()]]
    try:
        with eval_mode(model), torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    # all are there still, so none lies where another one lay
    return list({output.data_ptr(): output.numel() for output in found}.values())
