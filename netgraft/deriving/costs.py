"""What a narrowed model costs, without building it: exactly, from the axes of its products and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from netgraft.deriving.axes import Atom
from netgraft.deriving.following import Axes, ChannelMap
from netgraft.deriving.places import Block

Widths = Mapping[Atom, int]
"""How many channels are kept, of each set that is narrowed."""

Cost = Callable[[Widths], float]
"""What a model of some widths costs."""


class Macs:
    """Multiply-accumulates of all images that a model was followed on.

    Args:
        found: The model's channels; on one image, for the cost of one.
        blocks: That may be left out.
    """

    def __init__(self, found: ChannelMap, blocks: Sequence[Block] = ()) -> None:
        self._products = _Sum(
            (product.axes, product.factor, [block.atom for block in blocks if block.name in product.inside])
            for product in found.products
        )

    def __call__(self, widths: Widths) -> float:
        """Return them at some widths."""
        return self._products(widths)


class Parameters:
    """Numbers that a model learns.

    Args:
        found: The model's channels.
        model: Whose parameters are counted.
        blocks: That may be left out.
    """

    def __init__(self, found: ChannelMap, model: nn.Module, blocks: Sequence[Block] = ()) -> None:
        self._tensors = _Sum(
            (found.tensors[name], 1, [block.atom for block in blocks if name.startswith(f"{block.name}.")])
            for name, _ in model.named_parameters()
        )

    def __call__(self, widths: Widths) -> float:
        """Return how many there are at some widths."""
        return self._tensors(widths)


class _Sum:
    """A sum of products of axes: each axis a sum of segments, each segment a product of atoms.

    Args:
        terms: Axes, a factor, and atoms of which each must be there for the term to count.
    """

    def __init__(self, terms: Iterable[tuple[Axes, float, Sequence[Atom]]]) -> None:
        self._terms = [(factor, [axis.segments for axis in axes], atoms) for axes, factor, atoms in terms]

    def __call__(self, widths: Widths) -> float:
        return sum(
            factor
            * math.prod(widths.get(atom, 1) for atom in needed)
            * math.prod(
                sum(math.prod(widths.get(atom, atom.size) for atom in segment) for segment in segments)
                for segments in axes
            )
            for factor, axes, needed in self._terms
        )
