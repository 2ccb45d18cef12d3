"""A function in front of a layer, as one module."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Through(nn.Module):
    """A function of what comes in, in front of a layer."""

    def __init__(self, way: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.way = way
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.way(x))
