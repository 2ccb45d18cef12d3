"""Losses are computed in float32 or wider, whatever the logits come in."""

from __future__ import annotations

from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return ``tensor``, widened to float32 if it has fewer than 32 bits."""
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()
