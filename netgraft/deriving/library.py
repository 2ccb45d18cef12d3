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
from numpy.typing import NDArray
from torch import Tensor, nn

from netgraft.deriving.absence import ABSENCES
from netgraft.deriving.anatomy import Anatomy, segment_of_layers, states_in_front
from netgraft.deriving.choice import Options
from netgraft.deriving.compensation import (
    Compensation,
    add_to_output,
    compensated,
    compensated_by_precision,
    precision,
)
from netgraft.deriving.head_losses import losing_at
from netgraft.deriving.narrowing import put_out
from netgraft.deriving.places import Block, Place
from netgraft.deriving.selection import Losing, Reader, Removal, kept_channels, surgeon_removal
from netgraft.deriving.statistics import input_moments
from netgraft.errors import RequestError
from netgraft.modules import images_at_once

SIZES = 5
"""Widths of a place that are tried; errors between them follow the losses, which are known of each, within a tenth."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A place at several widths.

    Attributes:
        place: Where.
        removal: Its channels in the order in which they go, and what each loses.
        widths: Ascending, the teacher's last; those that were tried.
        errors: Of each width: mean squared change of the logits in parts of their variance; 0 at the teacher's.
    """

    place: Place | Block
    removal: Removal
    widths: tuple[int, ...]
    errors: tuple[float, ...]

    def is_whole(self) -> bool:
        """Whether order, widths and errors are of this place."""
        return (
            self.removal.order.dtype == torch.long
            and self.removal.order.sort().values.tolist() == list(range(self.place.width))
            and len(self.removal.losses) == self.place.width
            and bool((self.removal.losses.isfinite()).all())
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
        """Return all widths that may be chosen: of those that weren't tried errors are interpolated.

        Between two widths that were tried the logarithm of the error is straight in the logarithm of the loss in the
        layers behind, which is known of every width: where many channels can go for nothing and the next ones cost
        much, the error follows. Above the widest one that was tried the error is in proportion to the loss.
        None falls with the width below a wider one's.
        """
        every = sorted({*self.place.widths(self.place.width), *self.widths})
        tried = self.widths[:-1]
        errors = np.zeros(len(every))
        if tried:
            tiny = 1e-12
            losses = np.log(self._losses(every) + tiny)
            known = np.log(self._losses(tried) + tiny)
            logs = np.log(np.maximum(self.errors[:-1], tiny))
            # ascending losses are descending widths
            between = np.interp(losses, known[::-1], logs[::-1])
            errors = np.exp(between + np.minimum(losses - known[-1], 0))
        falling = np.maximum.accumulate(errors[::-1])[::-1]
        falling[-1] = 0.0
        return Options(self.place.atom, tuple(every), tuple(falling.tolist()))

    def _losses(self, widths: Sequence[int]) -> NDArray[np.float64]:
        """Loss in the layers behind at each width: of all channels that have gone."""
        total = np.cumsum(np.maximum(self.removal.losses.numpy(), 0))
        return np.array([total[self.place.width - width - 1] if width < self.place.width else 0.0 for width in widths])


@dataclass(frozen=True, eq=False)
class Library:
    """All places of a teacher, each at several widths; prints itself as a table.

    Attributes:
        entries: In the order of the forward.
        views: That the statistics were taken of, and that the errors were measured on.
    """

    entries: tuple[Entry, ...]
    views: tuple[int, int]

    def options(self) -> dict[Place | Block, Options]:
        """Return all widths that may be chosen of each place; see :meth:`Entry.options`."""
        return {entry.place: entry.options() for entry in self.entries}

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
                    "order": entry.removal.order.tolist(),
                    "losses": [float(f"{loss:.5g}") for loss in entry.removal.losses.tolist()],
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
                Entry(
                    place,
                    Removal(torch.tensor(row["order"]), torch.tensor(row["losses"], dtype=torch.float64)),
                    tuple(row["widths"]),
                    tuple(map(float, row["errors"])),
                )
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
    """Return all layers that sum over a place, or give queries and keys, with the moments of what they take in.

    Args:
        anatomy: Of the teacher.
        batches: Views (B, C, H, W) each.
    """
    products = {product.layer: product for place in anatomy.places for product in place.readers}
    writers = {
        rows.layer for place in anatomy.places for logits in place.logits for rows in (logits.queries, logits.keys)
    }
    products |= {product.layer: product for product in anatomy.layers if product.layer in writers}
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
    removal_of: Callable[[Place, Sequence[Losing]], Removal] = surgeon_removal,
    *,
    sizes: int = SIZES,
) -> Iterator[Entry]:
    """Try each place at several widths, all else as it was.

    Args:
        anatomy: Of the teacher.
        readers: As :func:`readers_of` gives them.
        held_back: Views (B, C, H, W) that took no part in the statistics.
        removal_of: Says in which order the channels of a place go, by all that sums over them.
        sizes: Widths to try, a place.

    Yields:
        The places, one after another, as soon as they are done.
    """
    model = copy.deepcopy(anatomy.model).eval()
    segments = anatomy.segments_of(model)
    segment_of = segment_of_layers(segments, model)
    # all views at once would take gigabytes at 224 px
    together = images_at_once(held_back.shape[1:], held_back.device)
    batches = [states_in_front(segments, some) for some in held_back.split(together)]
    logits = torch.cat([states[-1] for states in batches])
    scale = scale_of_errors(logits)

    def error(first: int) -> float:
        got = []
        for states in batches:
            # a segment may work in place
            state = states[first].clone()
            for segment in segments[first:]:
                state = segment(state)
            got.append(state)
        return float((torch.cat(got) - logits).square().mean() / scale)

    for block in anatomy.blocks:
        # from the segment in which it stands
        with _instead(model.get_submodule(block.name), ABSENCES[block.absence]()):
            lost = error(min(segment_of[layer] for layer in block.layers))
        gone = Removal(torch.tensor([0]), torch.ones(1, dtype=torch.float64))
        yield Entry(block, gone, (0, 1), (lost, 0.0))
    precisions: dict[str, Tensor] = {}
    for place in anatomy.places:
        of_place = [readers[product.layer] for product in place.readers]
        # the next place may be read by the same layers; of others each would take as much memory as their moments
        precisions = {
            reader.name: precisions[reader.name] if reader.name in precisions else precision(reader)
            for reader in of_place
            if len(reader.inputs.segments) > 1
        }
        removal = removal_of(place, losing_at(place, readers))
        # logits and norms have no weights that could leave channels out: these end where they are written
        layers = place.layers if place.acts_without_weights else [each.name for each in of_place]
        first = min(segment_of[layer] for layer in layers)
        errors = []
        widths = place.widths(sizes)
        for width in widths:
            kept = {place.atom: kept_channels(removal.order, width)}
            originals = [put_out(model, anatomy.found, kept)] if place.acts_without_weights else []
            for reader in of_place:
                if reader.name in precisions:
                    found = compensated_by_precision(reader, precisions[reader.name], kept)
                else:
                    found = compensated(reader, kept)
                originals.append(_compensate(anatomy, model, reader, found))
            errors.append(error(first))
            for restore in reversed(originals):
                restore()
        yield Entry(place, removal, (*widths, place.width), (*errors, 0.0))


@contextmanager
def _instead(module: nn.Module, other: nn.Module) -> Iterator[None]:
    """Let a module give what another one does, as long as the context lasts: it may be part of any graph."""
    hook = module.register_forward_hook(lambda module, inputs, output: other(*inputs))
    try:
        yield
    finally:
        hook.remove()


def scale_of_errors(logits: Tensor) -> Tensor:
    """Return what errors of logits (B, K) are parts of: their variance over views, or squares where views are alike.

    Raises:
        RequestError: They are no finite numbers.
    """
    if not logits.isfinite().all():
        raise RequestError("the teacher's logits are no finite numbers; it must run on the images as it is")
    variance, square = (logits - logits.mean(0)).square().mean(), logits.square().mean()
    return (variance if variance > 1e-9 * square else square).clamp_min(1e-30)


def _compensate(anatomy: Anatomy, model: nn.Module, reader: Reader, found: Compensation) -> Callable[[], None]:
    """Change a layer of ``model`` in place; return what gives it back its weights."""
    layer, norm = model.get_submodule(reader.name), anatomy.norm_behind(model, reader.name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    changed = [layer.weight, layer.bias, None if norm is None else norm.running_mean]
    saved = [None if tensor is None else tensor.clone() for tensor in changed]
    layer.weight.copy_(found.weight)
    if found.shift is not None:
        add_to_output(layer, norm, found.shift)

    def restore() -> None:
        for tensor, old in zip(changed, saved, strict=True):
            if tensor is not None and old is not None:
                tensor.copy_(old)

    return restore
