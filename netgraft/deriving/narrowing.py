"""Narrow a model: keep some of the channels of its places, in a copy, and prove that it is what it claims to be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from netgraft.deriving.absence import leave_out
from netgraft.deriving.axes import Atom
from netgraft.deriving.following import Axes, ChannelMap
from netgraft.deriving.places import Block, Place, without_weights
from netgraft.deriving.proofs import agree, exactly, those_that_hold, unnumbered
from netgraft.deriving.sizes import EPSILON, HEADS, counts_of_heads, replace_tensor, tell_sizes
from netgraft.modules import eval_mode

Kept = Mapping[Atom, Tensor]
"""Of each set of channels that is narrowed, the indices (n,) that are kept, ascending."""


def narrow(model: nn.Module, found: ChannelMap, kept: Kept, blocks: Sequence[Block] = ()) -> nn.Module:
    """Return a copy of ``model`` with fewer channels and blocks.

    Args:
        model: Unchanged.
        found: Its channels.
        kept: Which of them stay.
        blocks: To be left out, where none of their one index stays.
    """
    narrowed = copy.deepcopy(model)
    leave_out(narrowed, absences(blocks, kept))
    _scale_queries(narrowed, found, kept)
    _scale_responses(narrowed, found, kept)
    for name, tensor in list(tensors_of(narrowed)):
        axes = found.tensors[name]
        if touched(axes, kept):
            replace_tensor(narrowed, name, _selected(tensor, axes, kept))
    tell_sizes(narrowed, {**_groups(found, kept), **_heads(model, found, kept), **_epsilons(model, found, kept)})
    return narrowed


def absences(blocks: Sequence[Block], kept: Kept) -> dict[str, str]:
    """Return what takes the place of those blocks that don't stay, by their names."""
    return {block.name: block.absence for block in blocks if block.atom in kept and not len(kept[block.atom])}


def output_scales(found: ChannelMap, kept: Kept, layer: str) -> Tensor | None:
    """Return what each output of a layer is multiplied by in the narrowed model, (O,), float64; None for one.

    A module that divides logits by the root of what is left of a head's width gets larger queries for it.

    Args:
        found: The model's channels.
        kept: Which of them stay.
        layer: Its name.
    """
    scales = None
    for logits in found.logits:
        if logits.atom in kept and logits.atom in found.by_width and logits.queries.layer == layer:
            if scales is None:
                scales = torch.ones(found.tensors[f"{layer}.weight"][0].size, dtype=torch.float64)
            scales[logits.queries.numbers.flatten()] = math.sqrt(len(kept[logits.atom]) / logits.atom.size)
    return scales


@torch.no_grad()
def _scale_queries(model: nn.Module, found: ChannelMap, kept: Kept) -> None:
    present = {name for name, _ in model.named_modules()}
    for name in {logits.queries.layer for logits in found.logits} & present:
        scales, layer = output_scales(found, kept, name), model.get_submodule(name)
        if scales is not None and isinstance(layer, nn.Conv2d | nn.Linear):
            scale = scales.to(layer.weight)
            layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.mul_(scale)


def _rarer(found: ChannelMap, kept: Kept) -> dict[str, float]:
    """Return how many times as many channels each norm of responses took its mean over, of those that lost some."""
    axes = {name: axis for name, axis in found.response_norms.items() if touched((axis,), kept)}
    return {name: axis.size / len(axis.indices(kept)) for name, axis in axes.items()}


@torch.no_grad()
def _scale_responses(model: nn.Module, found: ChannelMap, kept: Kept) -> None:
    """Divide by the mean that zeros among the channels would give: by less than the mean over those that are left."""
    present = dict(model.named_modules())
    for name, times in _rarer(found, kept).items():
        if name in present:
            model.get_parameter(f"{name}.weight").mul_(times)


def _epsilons(model: nn.Module, found: ChannelMap, kept: Kept) -> dict[str, dict[str, float]]:
    """Return what norms of responses add to their larger means."""
    return {
        name: {EPSILON: vars(model.get_submodule(name))[EPSILON] * times} for name, times in _rarer(found, kept).items()
    }


def _groups(found: ChannelMap, kept: Kept) -> dict[str, dict[str, int]]:
    """Return the groups that convolutions have left."""
    left = {}
    for product in found.products:
        if product.groups is not None and touched((product.groups,), kept):
            left[product.layer] = {
                "groups": product.groups.kept_size(lambda atom: len(kept[atom]) if atom in kept else atom.size)
            }
    return left


def _heads(model: nn.Module, found: ChannelMap, kept: Kept) -> dict[str, dict[str, int | float]]:
    """Return the numbers that attention has left: of a module whose weights have as many heads, or heads as wide.

    Whether that is what its forward goes by, the proof of the place shows.
    """
    left: dict[str, dict[str, int | float]] = {}
    for name, module in model.named_modules():
        said = [vars(module)[key] for key in HEADS if isinstance(vars(module).get(key), int)]
        atoms = atoms_inside(found, name) & kept.keys()
        heads = [len(kept[atom]) for atom in atoms - found.widths if said and atom.size == said[0]]
        widths = [(atom.size, len(kept[atom])) for atom in atoms & found.widths]
        if heads or widths:
            before = (said[0], heads[-1] if heads else said[0]) if said else None
            scaled = {each.atom.size for each in found.logits if each.module == name and each.atom in found.by_width}
            left[name] = counts_of_heads(module, before, widths, scaled)
    return left


def atoms_inside(found: ChannelMap, module: str) -> set[Atom]:
    """Return the atoms that the tensors of a module are made of."""
    inside = [axes for name, axes in found.tensors.items() if name.startswith(f"{module}.")]
    return {atom for axes in inside for axis in axes for atom in axis.atoms()}


def tried_heads(
    model: nn.Module, found: ChannelMap, places: Sequence[Place], probe: Tensor
) -> tuple[ChannelMap, list[Place]]:
    """Find out by which widths of heads logits are divided, and which widths can't become smaller.

    Where a module, or its kernel, divides logits by the root of their width, the narrowed model computes what zeros do
    if its queries are scaled by the root of the part that stays: both are tried. Of modules of one class the first says
    whether the others are worth trying.

    Args:
        model: The teacher.
        found: Its channels.
        places: Of which some are widths of heads.
        probe: Images (B, C, H, W).

    Returns:
        The channels with those widths, and the places that are left to be proven.
    """
    if not any(place.atom in found.widths for place in places):
        return found, list(places)
    exact = exactly(model)

    def narrows(some: Sequence[Atom], by_width: Sequence[Atom]) -> bool:
        kept = {atom: torch.arange(0, atom.size, 2) for atom in some}
        return _narrows(exact, replace(found, by_width=frozenset(by_width)), kept, probe)

    classes: dict[Atom, str] = {}
    by_class: dict[str, list[Place]] = {}
    for place in places:
        if place.atom in found.widths:
            module = next(each.inside[-1] for each in found.products if not each.layer and _has(each.axes, place.atom))
            classes[place.atom] = type(model.get_submodule(module)).__qualname__
            by_class.setdefault(classes[place.atom], []).append(place)
    hopeful: list[Place] = []
    for alike in by_class.values():
        for group in ([place for place in alike if place.logits], [place for place in alike if not place.logits]):
            first = [place.atom for place in group[:1]]
            if first and (narrows(first, first) or narrows(first, [])):
                hopeful += group
    hopeless = {place for alike in by_class.values() for place in alike} - set(hopeful)
    of_logits = [place.atom for place in hopeful if place.logits]
    by_width = those_that_hold(of_logits, lambda some: narrows(some, some), lambda atom: classes[atom])
    return replace(found, by_width=frozenset(by_width)), [place for place in places if place not in hopeless]


def _has(axes: Axes, atom: Atom) -> bool:
    return any(atom in axis.atoms() for axis in axes)


def proven_places(model: nn.Module, found: ChannelMap, places: Sequence[Place], probe: Tensor) -> list[Place]:
    """Return the places that can be narrowed without a mistake: some of the channels of all of them go together.

    Args:
        model: The teacher.
        found: Its channels.
        places: To be proven.
        probe: Images (B, C, H, W).
    """
    # a model may count on widths that are one another's halves: neighbouring places keep other parts
    parts = (lambda channel: channel % 2 == 0, lambda channel: channel % 4 != 1, lambda channel: channel % 4 == 0)
    channels = {place.atom: torch.arange(place.width) for place in places}
    kept = {atom: each[parts[number % 3](each)] for number, (atom, each) in enumerate(channels.items())}
    exact = exactly(model)
    return those_that_hold(
        places,
        lambda some: _narrows(exact, found, {place.atom: kept[place.atom] for place in some}, probe),
        # keys and values may both be called after one layer
        lambda place: (unnumbered(place.name), bool(place.logits)),
    )


def proven_blocks(model: nn.Module, blocks: Sequence[Block], probe: Tensor) -> list[Block]:
    """Return the blocks without which the model computes, in float64, what it does where their weights are zero."""
    exact = exactly(model)
    return those_that_hold(blocks, lambda some: _can_go(exact, some, probe), lambda block: unnumbered(block.name))


@torch.no_grad()
def _can_go(exact: nn.Module, blocks: Sequence[Block], probe: Tensor) -> bool:
    shorter, empty = copy.deepcopy(exact), copy.deepcopy(exact)
    leave_out(shorter, {block.name: block.absence for block in blocks})
    for block in blocks:
        without_weights(empty.get_submodule(block.name))
    images = probe.cpu().double()
    try:
        with eval_mode(shorter), eval_mode(empty):
            return agree(shorter(images), empty(images))
    except Exception:  # whatever a forward raises that counts on the block
        return False


def without(model: nn.Module, found: ChannelMap, kept: Kept) -> nn.Module:
    """Return a copy of ``model`` as wide as before, in which the channels that don't stay are zero."""
    masked = copy.deepcopy(model)
    put_out(masked, found, kept)
    return masked


@torch.no_grad()
def put_out(model: nn.Module, found: ChannelMap, kept: Kept) -> Callable[[], None]:
    """Make channels that don't stay zero, in place, in all that writes and reads them; return what brings them back."""
    saved = []
    for name, tensor in tensors_of(model):
        if touched(found.tensors[name], kept):
            saved.append((tensor, tensor.clone()))
        for dim, axis in enumerate(found.tensors[name]):
            if touched((axis,), kept):
                gone = torch.ones(axis.size, dtype=torch.bool)
                gone[axis.indices(kept)] = False
                tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)

    @torch.no_grad()
    def restore() -> None:
        for tensor, old in saved:
            tensor.copy_(old)

    return restore


def is_proven(model: nn.Module, found: ChannelMap, kept: Kept, probe: Tensor) -> bool:
    """Return whether the narrowed model computes, in float64, what the model with zeros in its place does."""
    return _narrows(exactly(model), found, kept, probe)


@torch.no_grad()
def _narrows(exact: nn.Module, found: ChannelMap, kept: Kept, probe: Tensor) -> bool:
    narrowed, masked = narrow(exact, found, kept), without(exact, found, kept)
    try:
        with eval_mode(narrowed), eval_mode(masked):
            return agree(*(each(probe.cpu().double()) for each in (narrowed, masked)))
    except Exception:  # whatever a forward raises that counts on its widths
        return False


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters and buffers with their names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def touched(axes: Axes, kept: Kept) -> bool:
    """Whether some of these channels are gone."""
    return any(atom in kept for axis in axes for atom in axis.atoms())


def _selected(tensor: Tensor, axes: Axes, kept: Kept) -> Tensor:
    value = tensor.detach()
    for dim, axis in enumerate(axes):
        if touched((axis,), kept):
            value = value.index_select(dim, axis.indices(kept).to(value.device))
    return value.contiguous()
