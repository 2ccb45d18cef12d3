"""Attention transfer by gradients (Zagoruyko and Komodakis, ICLR 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.grafting.pairing import Pairing
from netgraft.losses import GradientAttention
from netgraft.methods.baseline import THE_DEFAULTS, Baseline, Objective
from netgraft.methods.features import to_maps
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import Feature, StepOutputs


class InputGradient(nn.Module):
    """Gradient, at the input of blocks, of each sample's cross-entropy with the arg-max as its class.

    Args:
        blocks: From (B, ...) to logits (B, K).
    """

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, inputs: Tensor) -> Tensor:
        """Differentiate, whatever the mode of autograd.

        Args:
            inputs: (B, ...).

        Returns:
            A constant of the inputs' shape, in float32.
        """
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.detach().float().requires_grad_()
            logits = self.blocks(inputs.clone())
            loss = F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
            [gradient] = torch.autograd.grad(loss, inputs)
        return gradient


@dataclass(frozen=True)
class GradientAT(Baseline):
    """Attention transfer by gradients; see ``about``.

    Where front blocks are inherited, gradients are compared behind them: there both networks are the same function.
    The class is the teacher's arg-max, on both tracks. The loss is :class:`netgraft.losses.GradientAttention`.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2, arXiv 1612.03928.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Match how the loss changes with what enters the trained blocks, beside KD; needs double backward.",
        category="offline",
        matches="attention",
        phases="1",
        labels="classes",
        article="Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928",
        year=2017,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": THE_DEFAULTS,
        "paper": THE_DEFAULTS,
    }

    gradient_weight: float = hyperparameter(1.0, "weight of the gradients' distance (beta)")

    def objective(self, pairing: Pairing) -> Objective:
        """Return gradients where training begins; the teacher's are a feature like any other, computed once."""
        first = pairing.inherited
        gradient = InputGradient(nn.Sequential(*pairing.teacher.blocks()[first:]))
        # both networks are cut alike behind what is inherited
        cut = pairing.teacher.cuts[first - 1] if first else None
        maps = to_maps(cut, cut.size) if cut is not None else []
        return Objective(
            partial(self._terms, maps=maps),
            teacher_features=(Feature(first - 1, nn.Sequential(gradient, *maps) if maps else gradient),),
            differentiates_input=True,
        )

    def _terms(self, batch: StepOutputs, *, maps: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        assert batch.target is not None
        assert batch.inputs is not None
        [teacher] = batch.teacher_features
        loss = F.cross_entropy(batch.output.float(), batch.target.argmax(1), reduction="sum")
        [gradient] = torch.autograd.grad(loss, batch.inputs, create_graph=True)
        student = nn.Sequential(*maps)(gradient)
        return {"gradient": self.gradient_weight * GradientAttention()(student, teacher)}
