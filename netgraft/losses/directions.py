"""Vectors of unit length, with gradients that stay finite where there is no direction."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(vectors: Tensor, eps: float = 1e-12) -> Tensor:
    """Scale vectors to unit length.

    Dividing by ``max(norm, eps)`` instead would give a zero vector, such as a dead channel, a gradient of ``1 / eps``.

    Args:
        vectors: (..., N).
        eps: Vectors no longer than this become zero and get no gradient.

    Returns:
        (..., N), of the same type.
    """
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms.masked_fill(norms <= eps, torch.inf)
