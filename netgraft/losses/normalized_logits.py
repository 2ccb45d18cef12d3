"""The loss of NetGraft: squared distance between logits of unit length."""

from __future__ import annotations

from torch import Tensor, nn

from netgraft.losses.directions import directions
from netgraft.losses.dtypes import at_least_float32
from netgraft.losses.reductions import known_reduction


class NormalizedLogits(nn.Module):
    """``sum_b || z_S/||z_S|| - z_T/||z_T|| ||^2`` (Shen et al., AAAI 2021, section "Block Grafting").

    Args:
        reduction: ``sum`` over the batch, as in the article, or ``mean``, which doesn't change with its size.
        eps: Logits no longer than this have no direction: they count as zero and get no gradient.

    Raises:
        ValueError: Another reduction.
    """

    def __init__(self, reduction: str = "sum", eps: float = 1e-12) -> None:
        super().__init__()
        self.reduction = known_reduction(reduction, "sum", "mean")
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits.

        Args:
            student: Logits (B, K).
            teacher: Of the same shape.

        Returns:
            A scalar in float32 or wider.
        """
        student, teacher = at_least_float32(student), at_least_float32(teacher)
        difference = directions(student, self.eps) - directions(teacher, self.eps)
        total = difference.square().sum()
        return total if self.reduction == "sum" else total / len(student)
