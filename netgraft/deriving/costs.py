"""What a narrowed model costs, without building it: exactly, from the axes of its products and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from netgraft.deriving.axes import Atom
from netgraft.deriving.following import Axes, ChannelMap, Product
from netgraft.deriving.low_rank import first_of, second_of
from netgraft.deriving.places import Block

Widths = Mapping[Atom, int]
"""How many channels are kept, of each set that is narrowed."""


class Part:
    """What a few widths cost together; a search asks for it at the same ones again and again.

    Args:
        atoms: Whose widths it depends on.
        price: From widths to what they cost.
    """

    def __init__(self, atoms: Iterable[Atom], price: Callable[[Widths], float]) -> None:
        self.atoms = tuple(dict.fromkeys(atoms))
        self._price = price
        self._known: dict[tuple[int | None, ...], float] = {}

    def __call__(self, widths: Widths) -> float:
        """Return what it costs at some widths."""
        key = tuple([widths.get(atom) for atom in self.atoms])
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._price(widths)
        return known


class Cost:
    """What a model of some widths costs: a sum, so that a width changes few of its parts.

    Args:
        parts: To be added up.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(parts)

    def __call__(self, widths: Widths) -> float:
        """Return what some widths cost."""
        return sum(part(widths) for part in self.parts)

    def given(self, fixed: Widths) -> Cost:
        """Return what widths cost beside others that are fixed."""

        def beside(part: Part) -> Part:
            if fixed.keys().isdisjoint(part.atoms):
                return part
            return Part((atom for atom in part.atoms if atom not in fixed), lambda widths: part({**widths, **fixed}))

        return Cost(map(beside, self.parts))


class Macs(Cost):
    """Multiply-accumulates of all images that a model was followed on.

    Args:
        found: The model's channels; on one image, for the cost of one.
        blocks: That may be left out.
    """

    def __init__(self, found: ChannelMap, blocks: Sequence[Block] = ()) -> None:
        def term(product: Product, axes: Axes) -> _Term:
            return _Term(axes, product.factor, [block.atom for block in blocks if block.name in product.inside])

        halves = {part(name) for name in found.low_rank for part in (first_of, second_of)}
        parts = [_cheapest([term(each, each.axes)]) for each in found.products if each.layer not in halves]
        by_layer = {product.layer: product for product in found.products}
        for name in sorted(found.low_rank):
            first, second = by_layer[first_of(name)], by_layer[second_of(name)]
            whole = (second.outputs if axis.segments == first.outputs.segments else axis for axis in first.axes)
            both = [term(first, first.axes), term(second, second.axes)]
            parts.append(_cheapest(both, [term(first, tuple(whole))]))
        super().__init__(parts)


class Parameters(Cost):
    """Numbers that a model learns.

    Args:
        found: The model's channels.
        model: Whose parameters are counted.
        blocks: That may be left out.
    """

    def __init__(self, found: ChannelMap, model: nn.Module, blocks: Sequence[Block] = ()) -> None:
        def term(name: str, axes: Axes) -> _Term:
            return _Term(axes, 1, [block.atom for block in blocks if name.startswith(f"{block.name}.")])

        weights = {name: (f"{first_of(name)}.weight", f"{second_of(name)}.weight") for name in sorted(found.low_rank)}
        halves = {weight for both in weights.values() for weight in both}
        parts = [
            _cheapest([term(name, found.tensors[name])]) for name, _ in model.named_parameters() if name not in halves
        ]
        for first, second in weights.values():
            both = [term(first, found.tensors[first]), term(second, found.tensors[second])]
            whole = (found.tensors[second][0], *found.tensors[first][1:])
            parts.append(_cheapest(both, [term(first, whole)]))
        super().__init__(parts)


class _Term:
    """A product of axes: each axis a sum of segments, each segment a product of atoms.

    Args:
        axes: Whose sizes are multiplied.
        factor: Likewise.
        needed: Atoms of which each must be there for the term to count.
    """

    def __init__(self, axes: Axes, factor: float, needed: Sequence[Atom]) -> None:
        self._axes, self._factor, self._needed = [axis.segments for axis in axes], factor, needed

    @property
    def atoms(self) -> list[Atom]:
        """All that it depends on."""
        return [*self._needed, *(atom for segments in self._axes for segment in segments for atom in segment)]

    def __call__(self, widths: Widths) -> float:
        return (
            self._factor
            * math.prod(widths.get(atom, 1) for atom in self._needed)
            * math.prod(
                sum(math.prod(widths.get(atom, atom.size) for atom in segment) for segment in segments)
                for segments in self._axes
            )
        )


def _cheapest(*ways: Sequence[_Term]) -> Part:
    """Return the least of some sums of terms: of two convolutions, and of one in their place."""
    atoms = (atom for way in ways for term in way for atom in term.atoms)
    return Part(atoms, lambda widths: min(sum(term(widths) for term in way) for way in ways))
