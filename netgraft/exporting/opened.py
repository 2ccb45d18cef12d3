"""A file that was opened again, as a module: what measures models measures it too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class OpenedExport(nn.Module):
    """Answers of whatever runs a file, without parameters of its own.

    Args:
        answer: Images to logits (N, K), on the CPU.
        dtype: Of the images, to which they are cast.
    """

    def __init__(self, answer: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self._answer = answer
        self._dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self._answer(images.to(self._dtype).contiguous())
