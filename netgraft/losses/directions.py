"""Vectors of unit length, with gradients that stay finite where there is no direction."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(vectors: Tensor, eps: float = 1e-12) -> Tensor:
    """Scale ``vectors`` (..., N) to unit length; those no longer than ``eps`` become zero and get no gradient.

    Dividing by ``max(norm, eps)`` instead would give a zero vector, such as a dead channel, a gradient of ``1 / eps``.
    """
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms.masked_fill(norms <= eps, torch.inf)
