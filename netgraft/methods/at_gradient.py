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
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.features import to_maps
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import Feature, StepOutputs


class InputGradient(nn.Module):
    """Gradient, at the input of blocks, of each sample's cross-entropy with its class.

    Args:
        blocks: From (B, ...) to logits (B, K).
    """

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, inputs: Tensor, classes: Tensor | None = None) -> Tensor:
        """Differentiate, whatever the mode of autograd.

        Args:
            inputs: (B, ...).
            classes: Of each sample, (B,); the arg-max of the logits if None.

        Returns:
            A constant of the inputs' shape, in float32.
        """
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.detach().float().requires_grad_()
            logits = self.blocks(inputs.clone())
            classes = logits.detach().argmax(1) if classes is None else classes
            loss = F.cross_entropy(logits, classes, reduction="sum")
            [gradient] = torch.autograd.grad(loss, inputs)
        return gradient


@dataclass(frozen=True)
class GradientAT(TermBesideClasses):
    """Attention transfer by gradients; see ``about``.

    Where front blocks are inherited, gradients are compared behind them: there both networks are the same function.
    The class is the label, or the teacher's arg-max where there are none. The loss is
    :class:`netgraft.losses.GradientAttention`.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2, arXiv 1612.03928.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Match how the loss changes with what enters the trained blocks, beside the classes; needs double "
        "backward.",
        category="offline",
        matches="attention",
        phases="1",
        labels="classes",
        article="Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928",
        year=2017,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views(
            "The article's: cross-entropy and the distance of gradients.",
            ce_weight=1.0,
        ),
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
            partial(self._terms, gradient=gradient, maps=maps),
            teacher_features=(Feature(first - 1, nn.Sequential(gradient, *maps) if maps else gradient),),
            differentiates_input=True,
        )

    def _terms(self, batch: StepOutputs, *, gradient: InputGradient, maps: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        assert batch.inputs is not None
        to_compared = nn.Sequential(*maps)
        if batch.labels is None:
            [teacher] = batch.teacher_features
        else:
            # what is computed once knows no labels
            teacher = to_compared(gradient(batch.inputs, batch.labels))
        loss = F.cross_entropy(batch.output.float(), batch.classes, reduction="sum")
        [student_gradient] = torch.autograd.grad(loss, batch.inputs, create_graph=True)
        student = to_compared(student_gradient)
        return {**self.classes(batch), "gradient": self.gradient_weight * GradientAttention()(student, teacher)}
