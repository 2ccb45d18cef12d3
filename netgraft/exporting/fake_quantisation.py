"""A model that learns to answer in 8 bits as it does in float, before it is quantised.

With fake-quantisation operators of PyTorch's core and hooks of our own: the eager flow of ``torch.ao`` swaps layers by
their exact class, which timm's subclasses (``Conv2dSame``) aren't, and leaves another model behind. Here nothing stays
but what was learned, and the exporter sees the same model with other weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.losses import LogitMSE
from netgraft.plan import Phase, Plan, StepOutputs, TrainingSchedule
from netgraft.progress import ProgressReporter
from netgraft.training.runner import Runner

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Whose weights and inputs are in 8 bits."""

LEVELS = 127
"""Of a weight, to either side of zero."""

RATE, BATCH = 1e-5, 32
"""Of Adam, down to zero by a cosine; views a step."""


class RoundedWeight(nn.Module):
    """A weight in 127 steps to either side of zero, each output channel with its own; gradients pass straight through.

    A batch norm behind the layer multiplies whole channels, so it makes no difference that it will be folded later.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight (O, ...)."""
        largest = weight.detach().flatten(1).abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny * 2**10)
        zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, largest / LEVELS, zeros, 0, -LEVELS, LEVELS)


def rounded(values: Tensor, low: float, high: float) -> Tensor:
    """Round activations to 256 levels from ``low`` to ``high``, of which zero is one; gradients pass inside."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, 255)


@torch.no_grad()
def ranges_of_inputs(model: nn.Module, images: Tensor) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value that each layer takes in.

    Args:
        model: In eval mode.
        images: (N, C, H, W), as it takes them.
    """
    found: dict[str, tuple[float, float]] = {}
    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if isinstance(layer, LAYERS):

                def watch(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                    low, high = found.get(name, (0.0, 0.0))
                    found[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

                hooks.callback(layer.register_forward_pre_hook(watch).remove)
        for batch in images.split(BATCH):
            model(batch)
    return found


@contextmanager
def fake_quantised(model: nn.Module, ranges: Mapping[str, tuple[float, float]]) -> Iterator[None]:
    """Let weights and inputs of a model's layers be rounded in this context; what was learned there stays."""
    with ExitStack() as undone:
        for name, (low, high) in ranges.items():
            layer = model.get_submodule(name)

            def enter(_: nn.Module, inputs: tuple[Tensor], low: float = low, high: float = high) -> tuple[Tensor]:
                return (rounded(inputs[0], low, high),)

            undone.callback(layer.register_forward_pre_hook(enter).remove)
            parametrize.register_parametrization(layer, "weight", RoundedWeight())
            undone.callback(parametrize.remove_parametrizations, layer, "weight", leave_parametrized=False)
        yield


def learned_in_8_bits(
    model: nn.Module,
    images: Sequence[Image.Image],
    calibration: Tensor,
    data_config: Mapping[str, Any],
    *,
    steps: int,
    rate: float = RATE,
    reporter: ProgressReporter | None = None,
) -> nn.Module:
    """Return a copy of a model whose weights lose less when they are quantised.

    It is distilled through fake quantisation with itself in float as the teacher: mean squared error of the logits, on
    rich views of a few images, by the loop that trains everything else. Batch norms keep their statistics, and
    activations the ranges that they have in float.

    Args:
        model: A classifier; unchanged.
        images: Photographs that views are made of; no labels.
        calibration: The same or others (N, C, H, W), as the model takes them, for the ranges.
        data_config: Preprocessing in timm's words.
        steps: Optimiser steps.
        rate: Peak rate.
        reporter: Told what happens.

    Raises:
        RequestError: There are no images.
        RunError: The loss became NaN.
    """
    teacher, student = (copy.deepcopy(model).cpu().float().eval().requires_grad_(False) for _ in range(2))
    ranges = ranges_of_inputs(teacher, calibration)
    views = Views.configured(images, VIEW_POLICIES["rich"], data_config, seed=0)
    with fake_quantised(student, ranges):
        blocks = nn.Sequential(student)
        schedule = TrainingSchedule(steps, BATCH, rate, lr_schedule="cosine")
        phase = Phase("learn in 8 bits", blocks, blocks, _difference, schedule, nn.Sequential(teacher))
        plan = Plan("fake quantisation", (phase,), blocks, keeps_statistics=blocks)
        Runner(accelerator="cpu", precision="32").run(plan, views, reporter=reporter)
    return student.eval()


def _difference(batch: StepOutputs) -> dict[str, Tensor]:
    assert batch.target is not None
    return {"logits": LogitMSE()(batch.output.float(), batch.target.float())}
