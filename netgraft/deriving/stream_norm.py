"""The norm of a residual stream in another basis than the teacher's, which doesn't say what its mean is."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StreamNorm(nn.Module):
    """Divides a stream whose mean over channels is zero by its root mean square, as a layer norm would.

    It is the same in every basis, and the squares are divided by the width of the whole stream: with zeros in the place
    of some channels, or without them, it gives the same.

    Args:
        whole: Channels of the stream that nothing has been taken from.
        eps: Added to the mean square.
    """

    def __init__(self, whole: int, eps: float) -> None:
        super().__init__()
        self.whole, self.eps = whole, eps
        # what a layer norm has: a model is as large with the one as with the other
        self.weight = nn.Parameter(torch.ones(whole))
        self.bias = nn.Parameter(torch.zeros(whole))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C), normed."""
        square = x.square().sum(-1, keepdim=True) / self.whole
        return x * torch.rsqrt(square + self.eps) * self.weight + self.bias
