"""Mean squared error of logits."""

from __future__ import annotations

from torch import Tensor, nn

from netgraft.losses.dtypes import at_least_float32


class LogitMSE(nn.Module):
    """``mean_b,k (z_S - z_T)^2`` (Ba and Caruana, NeurIPS 2014, equation 1, per output).

    Unlike a comparison of directions it also teaches how sure the teacher is.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits.

        Args:
            student: Logits (B, K).
            teacher: Of the same shape.

        Returns:
            A scalar in float32 or wider.
        """
        student, teacher = at_least_float32(student), at_least_float32(teacher)
        return (student - teacher).square().mean()
