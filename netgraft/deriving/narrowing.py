"""Narrow a model: keep some of the channels of its places, in a copy, and prove that it is what it claims to be."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from netgraft.deriving.axes import Atom
from netgraft.deriving.following import Axes, ChannelMap
from netgraft.deriving.places import Place
from netgraft.deriving.sizes import replace_tensor, tell_sizes
from netgraft.modules import eval_mode

Kept = Mapping[Atom, Tensor]
"""Of each set of channels that is narrowed, the indices (n,) that are kept, ascending."""


def narrow(model: nn.Module, found: ChannelMap, kept: Kept) -> nn.Module:
    """Return a copy of ``model`` with fewer channels.

    Args:
        model: Unchanged.
        found: Its channels.
        kept: Which of them stay.
    """
    narrowed = copy.deepcopy(model)
    for name, tensor in list(_tensors(narrowed)):
        axes = found.tensors[name]
        if _touched(axes, kept):
            replace_tensor(narrowed, name, _selected(tensor, axes, kept))
    tell_sizes(
        narrowed,
        {
            product.layer: product.groups.kept_size(lambda atom: len(kept[atom]) if atom in kept else atom.size)
            for product in found.products
            if product.groups is not None
        },
    )
    return narrowed


def without(model: nn.Module, found: ChannelMap, kept: Kept) -> nn.Module:
    """Return a copy of ``model`` as wide as before, in which the channels that don't stay are zero."""
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in _tensors(masked):
            for dim, axis in enumerate(found.tensors[name]):
                if _touched((axis,), kept):
                    gone = torch.ones(axis.size, dtype=torch.bool)
                    gone[axis.indices(kept)] = False
                    tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)
    return masked


def is_proven(model: nn.Module, found: ChannelMap, kept: Kept, probe: Tensor) -> bool:
    """Return whether the narrowed model computes, in float64, what the model with zeros in its place does."""
    return _narrows(_exact(model), found, kept, probe)


@torch.no_grad()
def _narrows(exact: nn.Module, found: ChannelMap, kept: Kept, probe: Tensor) -> bool:
    narrowed, masked = narrow(exact, found, kept), without(exact, found, kept)
    try:
        with eval_mode(narrowed), eval_mode(masked):
            got, expected = (each(probe.cpu().double()) for each in (narrowed, masked))
    except Exception:  # whatever a forward raises that counts on its widths
        return False
    scale = expected.abs().max().clamp_min(1e-30)
    return bool(torch.isfinite(got).all()) and torch.allclose(got / scale, expected / scale, rtol=0, atol=1e-9)


def proven_places(model: nn.Module, found: ChannelMap, places: Sequence[Place], probe: Tensor) -> list[Place]:
    """Return the places that can be narrowed without a mistake, all of them at once.

    Some of the channels of every place are left out together, of neighbouring places different parts; where that fails
    the culprits are found by halving.

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

    def with_more(proven: list[Place], more: list[Place]) -> list[Place]:
        both = proven + more
        if not more or _narrows(exact, found, {place.atom: kept[place.atom] for place in both}, probe):
            return both
        if len(more) == 1:
            return proven
        middle = len(more) // 2
        return with_more(with_more(proven, more[:middle]), more[middle:])

    return with_more([], list(places))


def _exact(model: nn.Module) -> nn.Module:
    """Return a copy in float64, on the CPU: not every device has it."""
    return copy.deepcopy(model).cpu().double()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _touched(axes: Axes, kept: Kept) -> bool:
    return any(atom in kept for axis in axes for atom in axis.atoms())


def _selected(tensor: Tensor, axes: Axes, kept: Kept) -> Tensor:
    value = tensor.detach()
    for dim, axis in enumerate(axes):
        if _touched((axis,), kept):
            value = value.index_select(dim, axis.indices(kept).to(value.device))
    return value.contiguous()
