"""A library of narrower places: each tried alone in the whole teacher, in closed form, and scored at its logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netgraft.deriving.absence import ABSENCES
from netgraft.deriving.anatomy import Anatomy, segment_of_layers, states_in_front
from netgraft.deriving.choice import Options
from netgraft.deriving.compensation import add_to_output, compensated
from netgraft.deriving.narrowing import Kept
from netgraft.deriving.places import Block, Place
from netgraft.deriving.selection import Reader, kept_channels
from netgraft.deriving.statistics import input_moments
from netgraft.errors import RequestError


@dataclass(frozen=True, eq=False)
class Entry:
    """A place at several widths.

    Attributes:
        place: Where.
        order: Its channels, the most dispensable first.
        widths: Ascending, the teacher's last.
        errors: Of each width: mean squared change of the logits in parts of their variance; 0 at the teacher's.
    """

    place: Place | Block
    order: Tensor
    widths: tuple[int, ...]
    errors: tuple[float, ...]

    def is_whole(self) -> bool:
        """Whether order, widths and errors are of this place."""
        return (
            self.order.dtype == torch.long
            and self.order.sort().values.tolist() == list(range(self.place.width))
            and all(isinstance(width, int) for width in self.widths)
            and self.widths[-1:] == (self.place.width,)
            and all(narrow < wide for narrow, wide in zip((self._least - 1, *self.widths), self.widths, strict=False))
            and len(self.widths) == len(self.errors)
            and all(math.isfinite(error) and error >= 0 for error in self.errors)
        )

    @property
    def _least(self) -> int:
        """A block can go as a whole."""
        return 0 if isinstance(self.place, Block) else 1

    def options(self) -> Options:
        """Return all widths that may be chosen: between those that were tried errors are interpolated.

        Their logarithms are, in which errors are nearly straight; none falls with the width below a wider one's.
        """
        every = sorted({*self.place.widths(self.place.width), *self.widths})
        floor = 1e-9
        logs = np.interp(every, self.widths, np.log(np.maximum(self.errors, floor)))
        falling = np.maximum.accumulate(np.exp(logs)[::-1])[::-1]
        falling[-1] = 0.0
        return Options(self.place.atom, tuple(every), tuple(falling.tolist()))


@dataclass(frozen=True, eq=False)
class Library:
    """All places of a teacher, each at several widths; prints itself as a table.

    Attributes:
        entries: In the order of the forward.
        views: That the statistics were taken of, and that the errors were measured on.
    """

    entries: tuple[Entry, ...]
    views: tuple[int, int]

    def __str__(self) -> str:
        name = max(len(entry.place.name) for entry in self.entries)
        lines = [f"{'place':{name}}  width  error of the logits at a width, in percent of their variance"]
        for entry in self.entries:
            tried = "  ".join(
                f"{width}: {100 * error:.2g}" for width, error in zip(entry.widths[:-1], entry.errors, strict=False)
            )
            lines.append(f"{entry.place.name:{name}}  {entry.place.width:5}  {tried}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "views": list(self.views),
            "places": [
                {
                    "place": entry.place.name,
                    "layers": list(entry.place.layers),
                    "widths": list(entry.widths),
                    "errors": list(entry.errors),
                    "order": entry.order.tolist(),
                }
                for entry in self.entries
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], places: Sequence[Place | Block]) -> Library:
        """Return what :meth:`to_json` wrote.

        Args:
            value: Of a library.
            places: Blocks and places of the same teacher, in the library's order.

        Raises:
            RequestError: It is damaged, or another teacher's.
        """
        try:
            rows = value["places"]
            entries = tuple(
                Entry(place, torch.tensor(row["order"]), tuple(row["widths"]), tuple(map(float, row["errors"])))
                for place, row in zip(places, rows, strict=True)
            )
            views, held_back = value["views"]
            fits = [entry.place.name == row["place"] for entry, row in zip(entries, rows, strict=True)]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RequestError(f"this library is damaged ({error}); make it anew") from error
        if not all(fits) or not all(entry.is_whole() for entry in entries):
            raise RequestError("this library is of another teacher, or damaged; make it anew")
        return cls(entries, (views, held_back))


def readers_of(anatomy: Anatomy, batches: Sequence[Tensor]) -> dict[str, Reader]:
    """Return all layers that sum over a place, with the moments of what they take in.

    Args:
        anatomy: Of the teacher.
        batches: Views (B, C, H, W) each.
    """
    products = {product.layer: product for place in anatomy.places for product in place.readers}
    layers = {name: anatomy.model.get_submodule(name) for name in products}
    moments = input_moments(anatomy.model, batches, layers)
    readers = {}
    for name, layer in layers.items():
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        norm = anatomy.norm_behind(anatomy.model, name)
        if not moments[name].products.isfinite().all():
            raise RequestError(
                f"{name} takes in values that are no finite numbers; the teacher must run on the images as it is"
            )
        readers[name] = Reader(name, layer, products[name].inputs, moments[name], norm)
    return readers


@torch.no_grad()
def score_widths(
    anatomy: Anatomy,
    readers: Mapping[str, Reader],
    held_back: Tensor,
    order_of: Callable[[Place], Tensor],
    *,
    sizes: int = 8,
) -> Iterator[Entry]:
    """Try each place at several widths, all else as it was.

    Args:
        anatomy: Of the teacher.
        readers: As :func:`readers_of` gives them.
        held_back: Views (B, C, H, W) that took no part in the statistics.
        order_of: Gives the channels of a place, the most dispensable first.
        sizes: Widths to try, a place.

    Yields:
        The places, one after another, as soon as they are done.
    """
    model = copy.deepcopy(anatomy.model).eval()
    segments = anatomy.segments_of(model)
    segment_of = segment_of_layers(segments, model)
    states = states_in_front(segments, held_back)
    logits = states[-1]
    scale = _scale(logits)

    def error(first: int) -> float:
        got = states[first].clone()
        for segment in segments[first:]:
            got = segment(got)
        return float((got - logits).square().mean() / scale)

    for block in anatomy.blocks:
        # from the segment in which it stands
        with _instead(model.get_submodule(block.name), ABSENCES[block.absence]()):
            lost = error(min(segment_of[layer] for layer in block.layers))
        yield Entry(block, torch.tensor([0]), (0, 1), (lost, 0.0))
    for place in anatomy.places:
        of_place = [readers[product.layer] for product in place.readers]
        order = order_of(place)
        first = min(segment_of[reader.name] for reader in of_place)
        errors = []
        widths = place.widths(sizes)
        for width in widths:
            kept = {place.atom: kept_channels(order, width)}
            originals = [_compensate(anatomy, model, reader, kept) for reader in of_place]
            errors.append(error(first))
            for restore in originals:
                restore()
        yield Entry(place, order, (*widths, place.width), (*errors, 0.0))


@contextmanager
def _instead(module: nn.Module, other: nn.Module) -> Iterator[None]:
    """Let a module give what another one does, as long as the context lasts: it may be part of any graph."""
    hook = module.register_forward_hook(lambda module, inputs, output: other(*inputs))
    try:
        yield
    finally:
        hook.remove()


def _scale(logits: Tensor) -> Tensor:
    """Return what errors are parts of: the logits' variance over views, or their squares where views are alike."""
    if not logits.isfinite().all():
        raise RequestError("the teacher's logits are no finite numbers; it must run on the images as it is")
    variance, square = (logits - logits.mean(0)).square().mean(), logits.square().mean()
    return (variance if variance > 1e-9 * square else square).clamp_min(1e-30)


def _compensate(anatomy: Anatomy, model: nn.Module, reader: Reader, kept: Kept) -> Callable[[], None]:
    """Change a layer of ``model`` in place; return what gives it back its weights."""
    layer, norm = model.get_submodule(reader.name), anatomy.norm_behind(model, reader.name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    changed = [layer.weight, layer.bias, None if norm is None else norm.running_mean]
    saved = [None if tensor is None else tensor.clone() for tensor in changed]
    found = compensated(reader, kept)
    layer.weight.copy_(found.weight)
    if found.shift is not None:
        add_to_output(layer, norm, found.shift)

    def restore() -> None:
        for tensor, old in zip(changed, saved, strict=True):
            if tensor is not None and old is not None:
                tensor.copy_(old)

    return restore
