"""Flow of the solution procedure: how the channels at a stage's end go together with those at its start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.losses.dtypes import at_least_float32
from netgraft.losses.reductions import known_reduction


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Compute ``G_ij = sum_hw first_i second_j / (H W)`` (Yim et al., CVPR 2017, equation 1).

    Where the maps differ in size, the larger are max-pooled to the size of the smaller, as in the article.

    Args:
        first: Maps (B, C1, H1, W1).
        second: Maps (B, C2, H2, W2).

    Returns:
        Matrices (B, C1, C2) in float32 or wider.

    Raises:
        ValueError: They are no maps, or not of one batch.
    """
    if first.dim() != 4 or second.dim() != 4 or len(first) != len(second):
        raise ValueError(
            "a flow matrix needs maps (B, C, H, W) of one batch, "
            f"not of shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    wider = torch.promote_types(first.dtype, second.dtype)
    # a matrix product in bfloat16 would lose the differences that are to be learned
    with torch.autocast(first.device.type, enabled=False):
        start, end = (_pooled(at_least_float32(maps.to(wider)), size).flatten(2) for maps in (first, second))
        return start @ end.mT / start.shape[2]


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if tuple(maps.shape[2:]) == size else F.adaptive_max_pool2d(maps, size)


class FlowOfSolution(nn.Module):
    """``sum_l || G_T,l - G_S,l ||_F^2`` over stages l, mean over the batch (Yim et al., CVPR 2017, equation 2, FSP).

    The stages' weights in the equation are 1.

    Args:
        reduction: ``sample``: the sum over a matrix, as in the equation; ``element``: the mean over a matrix, as common
            toolkits do. Stages are summed in both.

    Raises:
        ValueError: Another reduction.
    """

    def __init__(self, reduction: str = "sample") -> None:
        super().__init__()
        self.reduction = known_reduction(reduction, "sample", "element")

    def forward(self, student: Sequence[tuple[Tensor, Tensor]], teacher: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Compare stages.

        Args:
            student: Of each stage the maps (B, C1, H1, W1) at its start and (B, C2, H2, W2) at its end.
            teacher: As many stages, with the same B, C1 and C2 each; their sizes of maps may differ.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: The numbers of stages differ or are 0, or a stage's maps can't be compared.
        """
        if not student or len(student) != len(teacher):
            raise ValueError(
                "student and teacher must have as many stages as each other, at least one, "
                f"not {len(student)} and {len(teacher)}"
            )
        losses = [self._stage(flow_matrix(*s), flow_matrix(*t)) for s, t in zip(student, teacher, strict=True)]
        return torch.stack(losses).sum()

    def _stage(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape:
            raise ValueError(
                "a stage's flow matrices must agree in batch and channels, "
                f"not be {tuple(student.shape)} for the student and {tuple(teacher.shape)} for the teacher"
            )
        squares = (teacher - student).square()
        return squares.sum((1, 2)).mean() if self.reduction == "sample" else squares.mean()
