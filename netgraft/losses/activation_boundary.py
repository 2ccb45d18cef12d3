"""Activation boundaries: which neurons are active, made differentiable by a margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from netgraft.losses.dtypes import at_least_float32


class ActivationBoundary(nn.Module):
    """``mean_b || rho(T) * relu(m - S) + (1 - rho(T)) * relu(m + S) ||_2^2`` with ``rho(x) = 1[x > 0]``.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    AAAI 2019. Each neuron of the student is pushed beyond the margin on the side where the teacher's is. One on the
    wrong side costs at least ``m^2``, so ``m^2`` times the number of such neurons in a sample is a lower bound: the
    article's activation transfer loss, which has no useful gradient. The teacher gets no gradient.

    Args:
        margin: ``m``, how far from its boundary a neuron of the student has to be to cost nothing.

    Raises:
        ValueError: The margin is no finite number above 0.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        if not (margin > 0 and math.isfinite(margin)):
            raise ValueError(f"margin must be a finite number above 0, not {margin!r}")
        self.margin = margin

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare responses.

        Args:
            student: Responses (B, ...) *before* the activation function.
            teacher: Of the same shape; a response of 0 isn't active.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: Shapes differ, or there is nothing in them.
        """
        _require_responses(student, teacher)
        student = at_least_float32(student)
        missing = torch.where(teacher > 0, self.margin - student, self.margin + student).relu()
        return missing.square().flatten(1).sum(dim=1).mean()


def _require_responses(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim < 2 or not student.numel():
        raise ValueError(
            f"activation boundaries need responses of one shape (B, ...) that isn't empty, "
            f"not {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
