"""Hints: squared distance between features."""

from __future__ import annotations

from torch import Tensor, nn

from netgraft.losses.dtypes import at_least_float32
from netgraft.losses.reductions import known_reduction


class Hint(nn.Module):
    """``mean_b 1/2 ||F_T - F_S||^2``, the norm over all of a sample's features.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3. There ``F_S`` has passed through
    a regressor that gives it the teacher's shape; that is the caller's part.

    Args:
        reduction: ``sample`` sums over a sample as in the article; ``element`` is the plain mean squared error, without
            the 1/2, that toolkits use and that doesn't grow with the size of the features.

    Raises:
        ValueError: Another reduction.
    """

    def __init__(self, reduction: str = "sample") -> None:
        super().__init__()
        self.reduction = known_reduction(reduction, "sample", "element")

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare features.

        Args:
            student: Features (B, ...).
            teacher: Of the same shape.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: Shapes differ, or there is nothing in them.
        """
        if student.shape != teacher.shape or student.ndim < 2 or not student.numel():
            raise ValueError(
                f"hints need features of one shape (B, ...) that isn't empty, "
                f"not {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        squares = (at_least_float32(teacher) - at_least_float32(student)).square()
        return squares.mean() if self.reduction == "element" else squares.flatten(1).sum(dim=1).mean() / 2
