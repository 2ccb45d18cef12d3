"""Where a model can become narrower: one place for each set of channels that goes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netgraft.deriving.axes import Atom
from netgraft.deriving.following import ChannelMap, Product
from netgraft.deriving.statistics import MOST_FEATURES

MULTIPLE = 8
"""Widths are multiples of it, where the place is wide enough: what processors and accelerators compute fastest."""


@dataclass(frozen=True, eq=False)
class Place:
    """A set of channels that is narrowed as one.

    Attributes:
        name: Of the layer that writes it first.
        atom: The channels.
        readers: Layers that sum over it, in the order of the forward: where what leaves can be made up for.
        layers: All layers that have it on one of their sides.
    """

    name: str
    atom: Atom
    readers: tuple[Product, ...]
    layers: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many channels the teacher has here."""
        return self.atom.size

    def widths(self, count: int) -> tuple[int, ...]:
        """Return up to ``count`` smaller widths, evenly spaced multiples of 8 (of 1 below 16 channels), ascending."""
        step = MULTIPLE if self.width >= 2 * MULTIPLE else 1
        options = list(range(step, self.width, step))
        if len(options) <= count:
            return tuple(options)
        chosen = {options[round(place * (len(options) - 1) / max(count - 1, 1))] for place in range(count)}
        return tuple(sorted(chosen))


def find_places(found: ChannelMap) -> list[Place]:
    """Return where a model can become narrower, in the order of its forward.

    A set of channels is a place if layers write it and layers sum over it. Channels that two computed tensors sum over,
    as queries and keys do, are none; nor are those that a layer takes in among more than :data:`MOST_FEATURES`, or as
    products with themselves.
    """
    summed_without_weights = {
        atom for product in found.products if not product.layer for atom in product.inputs.atoms()
    }
    places = []
    for atom in found.free_atoms():
        if atom in summed_without_weights or atom.size < 2:
            continue
        readers = [each for each in found.products if _reads(each, atom)]
        writers = [each for each in found.products if each.layer and atom in each.outputs.atoms()]
        if readers and writers and not any(_is_unsuited(each, atom) for each in readers):
            layers = dict.fromkeys(each.layer for each in (*writers, *readers))
            places.append(Place(writers[0].layer, atom, tuple(readers), tuple(layers)))
    order = {product.layer: number for number, product in reversed(list(enumerate(found.products)))}
    return _named_apart(sorted(places, key=lambda place: order[place.name]))


def _reads(product: Product, atom: Atom) -> bool:
    """Whether a layer sums over it; a grouped convolution hands its groups on."""
    handed_on = () if product.groups is None else product.groups.atoms()
    return bool(product.layer) and atom in product.inputs.atoms() and atom not in handed_on


def _is_unsuited(product: Product, atom: Atom) -> bool:
    with_itself = any(segment.count(atom) > 1 for segment in product.inputs.segments)
    return with_itself or product.inputs.size > MOST_FEATURES


def _named_apart(places: Sequence[Place]) -> list[Place]:
    """Number the places that the same layer writes first: its groups, and the channels in each."""
    seen: dict[str, int] = {}
    named = []
    for place in places:
        number = seen[place.name] = seen.get(place.name, 0) + 1
        name = place.name if number == 1 else f"{place.name}#{number}"
        named.append(Place(name, place.atom, place.readers, place.layers))
    return named
