"""Narrow a model: keep some of the channels of its places, in a copy, and prove that it is what it claims to be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from netgraft.deriving.absence import leave_out
from netgraft.deriving.axes import Atom
from netgraft.deriving.following import Axes, ChannelMap
from netgraft.deriving.places import Block, Place, without_weights
from netgraft.deriving.sizes import HEADS, counts_of_heads, replace_tensor, tell_sizes
from netgraft.modules import eval_mode

T = TypeVar("T")

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
    for name, tensor in list(tensors_of(narrowed)):
        axes = found.tensors[name]
        if touched(axes, kept):
            replace_tensor(narrowed, name, _selected(tensor, axes, kept))
    tell_sizes(narrowed, {**_groups(found, kept), **_heads(model, found, kept)})
    return narrowed


def absences(blocks: Sequence[Block], kept: Kept) -> dict[str, str]:
    """Return what takes the place of those blocks that don't stay, by their names."""
    return {block.name: block.absence for block in blocks if block.atom in kept and not len(kept[block.atom])}


def _groups(found: ChannelMap, kept: Kept) -> dict[str, dict[str, int]]:
    """Return the groups that convolutions have left."""
    left = {}
    for product in found.products:
        if product.groups is not None and touched((product.groups,), kept):
            left[product.layer] = {
                "groups": product.groups.kept_size(lambda atom: len(kept[atom]) if atom in kept else atom.size)
            }
    return left


def _heads(model: nn.Module, found: ChannelMap, kept: Kept) -> dict[str, dict[str, int]]:
    """Return the heads that attention has left: of a module that says how many it has, and whose weights have as many.

    Whether that is what its forward goes by, the proof of the place shows.
    """
    left = {}
    for name, module in model.named_modules():
        said = [vars(module)[key] for key in HEADS if isinstance(vars(module).get(key), int)]
        if said:
            inside = [axes for tensor, axes in found.tensors.items() if tensor.startswith(f"{name}.")]
            atoms = {atom for axes in inside for axis in axes for atom in axis.atoms()}
            for atom in atoms & kept.keys():
                if atom.size == said[0]:
                    left[name] = counts_of_heads(module, atom.size, len(kept[atom]))
    return left


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
    exact = _exact(model)
    return _those_that_hold(
        places, lambda some: _narrows(exact, found, {place.atom: kept[place.atom] for place in some}, probe)
    )


def proven_blocks(model: nn.Module, blocks: Sequence[Block], probe: Tensor) -> list[Block]:
    """Return the blocks without which the model computes, in float64, what it does where their weights are zero."""
    exact = _exact(model)
    return _those_that_hold(blocks, lambda some: _can_go(exact, some, probe))


def _those_that_hold(candidates: Sequence[T], holds: Callable[[list[T]], bool]) -> list[T]:
    """Return those that hold together.

    What is tried comes on top of what held before, so that one bad pair costs no more than one of the two; where it
    fails the culprits are found by halving.
    """

    def with_more(held: list[T], more: list[T]) -> list[T]:
        if not more or holds(held + more):
            return held + more
        if len(more) == 1:
            return held
        middle = len(more) // 2
        return with_more(with_more(held, more[:middle]), more[middle:])

    return with_more([], list(candidates))


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


def agree(got: Tensor, expected: Tensor) -> bool:
    """Whether float64 logits are the same but for rounding."""
    scale = expected.abs().max().clamp_min(1e-30)
    return bool(torch.isfinite(got).all()) and torch.allclose(got / scale, expected / scale, rtol=0, atol=1e-9)


def without(model: nn.Module, found: ChannelMap, kept: Kept) -> nn.Module:
    """Return a copy of ``model`` as wide as before, in which the channels that don't stay are zero."""
    masked = copy.deepcopy(model)
    for name, tensor in tensors_of(masked):
        silence(tensor, found.tensors[name], kept)
    return masked


@torch.no_grad()
def silence(tensor: Tensor, axes: Axes, kept: Kept) -> None:
    """Make a tensor zero, in place, wherever channels stand that are gone.

    Args:
        tensor: Parameter or buffer.
        axes: Of it.
        kept: Channels that stay.
    """
    for dim, axis in enumerate(axes):
        if touched((axis,), kept):
            gone = torch.ones(axis.size, dtype=torch.bool)
            gone[axis.indices(kept)] = False
            tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)


def is_proven(model: nn.Module, found: ChannelMap, kept: Kept, probe: Tensor) -> bool:
    """Return whether the narrowed model computes, in float64, what the model with zeros in its place does."""
    return _narrows(_exact(model), found, kept, probe)


@torch.no_grad()
def _narrows(exact: nn.Module, found: ChannelMap, kept: Kept, probe: Tensor) -> bool:
    narrowed, masked = narrow(exact, found, kept), without(exact, found, kept)
    try:
        with eval_mode(narrowed), eval_mode(masked):
            return agree(*(each(probe.cpu().double()) for each in (narrowed, masked)))
    except Exception:  # whatever a forward raises that counts on its widths
        return False


def _exact(model: nn.Module) -> nn.Module:
    """Return a copy in float64, on the CPU: not every device has it."""
    return copy.deepcopy(model).cpu().double()


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
