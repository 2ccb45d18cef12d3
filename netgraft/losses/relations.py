"""Relational distillation: the distances and the angles between the samples of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.losses.directions import directions
from netgraft.losses.dtypes import at_least_float32


class RelationalDistance(nn.Module):
    """``mean_ij l(d_S(i, j), d_T(i, j))`` (Park et al., CVPR 2019, section 3.2.1, RKD-D).

    ``d(i, j) = ||e_i - e_j||_2 / mu``, ``mu`` being the mean of the positive distances of the batch, and ``l`` the
    Huber loss with threshold 1. The article sums over pairs of different samples; as in the authors' code, this is the
    mean over all B*B ordered pairs, the B zeros of the diagonal included. Only pairs within the batch that is passed
    are seen, so the value depends on how processes share a batch.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the distances within a batch.

        Fewer than three samples give 0, since two always are one mean distance apart.

        Args:
            student: Embeddings (B, D_S).
            teacher: Embeddings (B, D_T) of the same batch.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: They are no embeddings, or not of one batch.
        """
        _check(student, teacher)
        return F.smooth_l1_loss(*_same_type(_relative_distances(student), _relative_distances(teacher)))


class RelationalAngle(nn.Module):
    """``mean_ijk l(a_S(i, j, k), a_T(i, j, k))`` (Park et al., CVPR 2019, section 3.2.2, RKD-A).

    ``a(i, j, k)`` is the cosine of the angle at ``e_j`` between ``e_i - e_j`` and ``e_k - e_j``, and ``l`` the Huber
    loss with threshold 1. The article sums over triplets; as in the authors' code, this is the mean over all B^3
    ordered triplets, of which those that repeat a sample contribute 0. Where two embeddings coincide, cosines of
    angles with that side count as 0. Only triplets within the batch that is passed are seen, so the value depends on
    how processes share a batch.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the angles within a batch.

        Makes tensors of B^3 and of B*B*D numbers, none larger. Fewer than three samples give 0.

        Args:
            student: Embeddings (B, D_S).
            teacher: Embeddings (B, D_T) of the same batch.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: They are no embeddings, or not of one batch.
        """
        _check(student, teacher)
        return F.smooth_l1_loss(*_same_type(_cosines(student), _cosines(teacher)))


def _relative_distances(embeddings: Tensor) -> Tensor:
    """Return Euclidean distances (B, B) in units of the mean of the positive ones."""
    embeddings = at_least_float32(embeddings)
    # by differences: through inner products, small distances far from the origin would be noise
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.masked_fill(mean == 0, torch.inf)


def _cosines(embeddings: Tensor) -> Tensor:
    """Return the cosines (B, B, B) of the angles at the first index between the sides to the other two."""
    embeddings = at_least_float32(embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        sides = directions(embeddings[None, :, :] - embeddings[:, None, :])
        cosines = sides @ sides.mT
    # the angle between a side and itself says nothing, and its cosine is 1 only up to rounding
    same = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    return cosines.masked_fill(same, 0)


def _same_type(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    wider = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(wider), teacher.to(wider)


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            "student and teacher must be embeddings (B, D) of one batch, "
            f"not of shapes {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
