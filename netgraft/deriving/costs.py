"""What a narrowed model costs, without building it: exactly, from the axes of its products and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from netgraft.deriving.axes import Atom
from netgraft.deriving.following import Axes, ChannelMap

Widths = Mapping[Atom, int]
"""How many channels are kept, of each set that is narrowed."""

Cost = Callable[[Widths], float]
"""What a model of some widths costs."""


class Macs:
    """Multiply-accumulates for one image.

    Args:
        found: The model's channels.
        images: That the model was followed on.
    """

    def __init__(self, found: ChannelMap, images: int) -> None:
        self._products = _Sum((product.axes, product.factor / images) for product in found.products)

    def __call__(self, widths: Widths) -> float:
        """Return them at some widths."""
        return self._products(widths)


class Parameters:
    """Numbers that a model learns.

    Args:
        found: The model's channels.
        model: Whose parameters are counted.
    """

    def __init__(self, found: ChannelMap, model: nn.Module) -> None:
        self._tensors = _Sum((found.tensors[name], 1) for name, _ in model.named_parameters())

    def __call__(self, widths: Widths) -> float:
        """Return how many there are at some widths."""
        return self._tensors(widths)


class _Sum:
    """A sum of products of axes: each axis a sum of segments, each segment a product of atoms."""

    def __init__(self, terms: Iterable[tuple[Axes, float]]) -> None:
        self._terms = [(factor, [axis.segments for axis in axes]) for axes, factor in terms]

    def __call__(self, widths: Widths) -> float:
        return sum(
            factor
            * math.prod(
                sum(math.prod(widths.get(atom, atom.size) for atom in segment) for segment in segments)
                for segments in axes
            )
            for factor, axes in self._terms
        )
