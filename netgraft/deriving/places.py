"""Where a model can become narrower: one place for each set of channels that goes together."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from netgraft.deriving.axes import Atom
from netgraft.deriving.following import Axes, ChannelMap, Product
from netgraft.deriving.heads import Logits
from netgraft.deriving.low_rank import first_of, name_of, pays, second_of
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
        logits: Products of queries with keys that sum over it, where it is the width of heads.
        is_averaged: Whether a norm of responses takes a mean over it.
        held: Channels that go last: of a stream, the direction of the mean, which a layer norm needs; none elsewhere.
        dear: The narrower width from which on it costs as much as the whole; None where each costs less. Of ranks: two
            convolutions can cost more than one.
    """

    name: str
    atom: Atom
    readers: tuple[Product, ...]
    layers: tuple[str, ...]
    logits: tuple[Logits, ...] = ()
    is_averaged: bool = False
    held: tuple[int, ...] = ()
    dear: int | None = None

    @property
    def width(self) -> int:
        """How many channels the teacher has here."""
        return self.atom.size

    @property
    def is_stream(self) -> bool:
        """Whether a norm takes a mean square over it."""
        return bool(self.held)

    @property
    def acts_without_weights(self) -> bool:
        """Whether something else than its readers goes by it: channels must be zero then, not only unread."""
        return self.is_stream or self.is_averaged or bool(self.logits)

    @property
    def columns(self) -> int:
        """How often each channel stands among what a reader sums over: a head of attention as often as it is wide.

        Logits sum over the width of a head alone.
        """
        if self.logits:
            return 1
        inputs = [[each for each in reader.inputs.segments if self.atom in each] for reader in self.readers]
        return min(
            (sum(math.prod(atom.size for atom in each) for each in segments) // self.width for segments in inputs),
            default=1,
        )

    def widths(self, count: int) -> tuple[int, ...]:
        """Return up to ``count`` smaller widths, evenly spaced, ascending.

        What readers sum over is a multiple of 8 then, where the place has 16 channels or more.
        """
        step = MULTIPLE // math.gcd(MULTIPLE, self.columns) if self.width >= 2 * MULTIPLE else 1
        options = list(range(step, self.width if self.dear is None else self.dear, step))
        if len(options) <= count:
            return tuple(options)
        chosen = {options[round(place * (len(options) - 1) / max(count - 1, 1))] for place in range(count)}
        return tuple(sorted(chosen))


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block, or a branch of one, that can be left out whole.

    Attributes:
        name: Of its module.
        atom: Of one index: whether the block is there.
        is_branch: Whether nothing is added instead of what the module gives; else its input goes on as it is.
        layers: Inside.
    """

    name: str
    atom: Atom
    is_branch: bool
    layers: tuple[str, ...]

    @property
    def absence(self) -> str:
        """What takes its place, as :data:`netgraft.deriving.absence.ABSENCES` calls it."""
        return "nothing" if self.is_branch else "passed"

    @property
    def width(self) -> int:
        """One: it is there."""
        return 1

    def widths(self, count: int) -> tuple[int, ...]:
        """Return the one smaller width, 0."""
        return (0,)


def find_blocks(model: nn.Module, found: ChannelMap) -> list[Block]:
    """Return modules that give what they take in, or nothing, where all their weights are zero; the innermost ones.

    Args:
        model: As it was followed.
        found: Its channels.
    """
    blocks = []
    for name, module in model.named_modules():
        inside = tuple(dict.fromkeys(each.layer for each in found.products if each.layer and name in each.inside))
        layers = {name_of(layer, found.low_rank) for layer in inside}
        if not name or len(layers) < 2 or name not in found.inputs or name not in found.outputs:
            continue
        taken, given = found.inputs[name], found.outputs[name]
        if len(taken) == len(given) and all(a.segments == b.segments for a, b in zip(taken, given, strict=True)):
            is_branch = _gives_nothing(module, taken)
            if is_branch is not None:
                blocks.append(Block(name, Atom(1), is_branch, inside))
    names = [block.name for block in blocks]
    return [block for block in blocks if not any(other.startswith(f"{block.name}.") for other in names)]


@torch.no_grad()
def without_weights(module: nn.Module) -> nn.Module:
    """Make all weights of a module zero, in place, and the means that its batch norms take off."""
    for parameter in module.parameters():
        parameter.zero_()
    for name, value in module.named_buffers():
        if name.endswith("running_mean"):
            value.zero_()
    return module


@torch.no_grad()
def _gives_nothing(module: nn.Module, taken: Axes) -> bool | None:
    """Whether a module without weights gives zeros; False if it gives what it takes in, None if something else."""
    empty = without_weights(copy.deepcopy(module).cpu().double())
    empty.eval()  # what it returns is up to the module
    # what a ReLU gave is not negative, and only what isn't passes through another one as it is
    state = torch.rand([axis.size for axis in taken], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        given = empty(state.clone())
    except Exception:  # whatever a forward raises that needs more than one tensor
        return None
    if given.shape != state.shape:
        return None
    if not given.any():
        return True
    return False if torch.allclose(given, state, rtol=0, atol=1e-12) else None


def find_places(found: ChannelMap) -> list[Place]:
    """Return where a model can become narrower, in the order of its forward.

    A set of channels is a place if layers write it and layers sum over it, or queries and keys of which is known which
    channel is multiplied with which. Channels that other computed tensors sum over are none; nor are those that a layer
    takes in among more than :data:`MOST_FEATURES`, or as products with themselves.
    """
    summed_without_weights = Counter(
        atom for product in found.products if not product.layer for atom in product.inputs.atoms()
    )
    streams = {atom for axis in found.stream_norms.values() for atom in axis.atoms()}
    averaged = {atom for axis in found.response_norms.values() for atom in axis.atoms()}
    places = []
    for atom in found.free_atoms():
        logits = tuple(each for each in found.logits if each.atom is atom)
        if summed_without_weights[atom] != len(logits) or atom.size < 2:
            continue
        readers = [each for each in found.products if _reads(each, atom)]
        writers = [each for each in found.products if each.layer and atom in each.outputs.atoms()]
        if (readers or logits) and writers and not any(_is_unsuited(each, atom) for each in readers):
            layers = dict.fromkeys(each.layer for each in (*writers, *readers))
            places.append(
                Place(
                    writers[0].layer,
                    atom,
                    tuple(readers),
                    tuple(layers),
                    logits,
                    is_averaged=atom in averaged,
                    held=(0,) if atom in streams else (),
                )
            )
    order = {product.layer: number for number, product in reversed(list(enumerate(found.products)))}
    in_order = sorted(places, key=lambda place: order[place.name])
    named = [_as_a_rank(place, found) if found.low_rank else place for place in in_order]
    return _named_apart([place for place in named if place.widths(1)])


def _as_a_rank(place: Place, found: ChannelMap) -> Place:
    """Name a place as if no convolution were two; what lies between two is the rank of the one."""
    name = name_of(place.name, found.low_rank)
    if place.name != first_of(name):
        return replace(place, name=name)
    _, *taken = found.tensors[f"{first_of(name)}.weight"]
    given = found.tensors[f"{second_of(name)}.weight"][0].size
    sums_over = math.prod(axis.size for axis in taken)
    dear = next((rank for rank in range(1, place.width) if not pays(rank, sums_over, given)), None)
    return replace(place, name=f"{name}.rank", dear=dear)


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
        named.append(replace(place, name=name))
    return named
