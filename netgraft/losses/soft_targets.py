"""Soft targets: divergence of the student's softened outputs from the teacher's."""

from __future__ import annotations

import math

from torch import Tensor, nn

from netgraft.losses.dtypes import at_least_float32


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Return ``softmax(logits / temperature)`` (Hinton et al., equation 1).

    Args:
        logits: (..., K).
        temperature: Larger is softer.

    Returns:
        Probabilities (..., K) in float32 or wider.

    Raises:
        ValueError: The temperature is no finite number above 0.
    """
    return (at_least_float32(logits) / _checked(temperature)).softmax(dim=-1)


class SoftTargets(nn.Module):
    """``tau^2 mean_b KL(softmax(z_T / tau) || softmax(z_S / tau))``.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, 2015, section 2.
    The factor ``tau^2`` keeps the size of the gradient when the temperature changes. At high temperatures and for
    logits of mean zero the loss tends to ``mean_b sum_k (z_S - z_T)^2 / (2 K)`` (section 2.1).

    Args:
        temperature: ``tau``, what both networks' logits are divided by; larger is softer.

    Raises:
        ValueError: The temperature is no finite number above 0.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = _checked(temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits.

        Args:
            student: Logits (B, K).
            teacher: Of the same shape.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: Shapes differ, or there is nothing in them.
        """
        if student.shape != teacher.shape or student.ndim != 2 or not student.numel():
            raise ValueError(
                f"soft targets need logits of one shape (B, K), neither of them 0, "
                f"not {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        # differences of logarithms stay finite where a probability underflows to 0
        log_student = (at_least_float32(student) / self.temperature).log_softmax(dim=1)
        log_teacher = (at_least_float32(teacher) / self.temperature).log_softmax(dim=1)
        divergence = (softened(teacher, self.temperature) * (log_teacher - log_student)).sum(dim=1)
        return self.temperature**2 * divergence.mean()


def _checked(temperature: float) -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a finite number above 0, not {temperature!r}")
    return temperature
