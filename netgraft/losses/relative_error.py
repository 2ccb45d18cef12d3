"""Squared differences in parts of the teacher's variance."""

from __future__ import annotations

from torch import Tensor, nn

from netgraft.losses.dtypes import at_least_float32


class RelativeError(nn.Module):
    """``mean (s - t)^2 / mean (t - mean t)^2`` over all values: 0 where both are alike, 1 for the teacher's mean alone.

    One minus the coefficient of determination; where the teacher gives one value alone it is divided by ``epsilon``.

    Args:
        epsilon: Smallest variance that is divided by.
    """

    def __init__(self, epsilon: float = 1e-12) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps.

        Args:
            student: (B, ...).
            teacher: Of the same shape.

        Returns:
            A scalar in float32 or wider.
        """
        student, teacher = at_least_float32(student), at_least_float32(teacher)
        variance = (teacher - teacher.mean()).square().mean().clamp_min(self.epsilon)
        return (student - teacher).square().mean() / variance
