"""One round of narrowing: what each channel of a model is worth, measured on it, and which of them a budget leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from netgraft.deriving.allocation import ALLOCATIONS
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.axes import Atom
from netgraft.deriving.choice import Limit, Options
from netgraft.deriving.costs import Cost, Macs, Parameters, Widths
from netgraft.deriving.head_losses import losing_at
from netgraft.deriving.latency import Milliseconds
from netgraft.deriving.library import Library, readers_of, score_widths
from netgraft.deriving.narrowing import Kept, narrow
from netgraft.deriving.options import DerivingOptions
from netgraft.deriving.places import Block, Place
from netgraft.deriving.selection import Losing, Reader, Removal, kept_channels, removal_in_order, surgeon_removal
from netgraft.deriving.turning import Turning
from netgraft.deriving.weight_norm import weight_norm_order
from netgraft.errors import RequestError
from netgraft.progress import ProgressReporter

REPEATS, LAYER_REPEATS = 20, 5
"""Timed forwards, of which the shortest counts, of whole models and of single layers."""

LARGEST_STEP = 0.8
"""Factor on the milliseconds allowed, from one choice to the next, that is not gone below."""

ATTEMPTS = 5
"""How often widths are chosen again because the student turned out slower than reckoned."""


class Samples(Protocol):
    """Views of the few images, made when they are first needed."""

    @property
    def batches(self) -> Sequence[Tensor]:
        """That statistics are taken of, (B, C, H, W) each."""

    @property
    def held_back(self) -> Tensor:
        """That errors are measured on, (B, C, H, W)."""


Stopwatch = Callable[..., float]
"""From a model, images (B, C, H, W) and ``repeats=`` to the milliseconds of the shortest forward."""


class Round:
    """A model that channels are taken from once; each thing is measured when it is first needed.

    Args:
        anatomy: Of the model.
        samples: Views of the few images.
        options: Which channels go, and how many of each layer.
        among: Places whose widths are chosen.
        forced: Widths that are given and not chosen.
        turning: Gives a model that computes the same in better bases, when statistics are first needed; None to take
            the model as it is.
        stopwatch: Of the device at hand.
        reporter: Told what happens.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        samples: Samples,
        options: DerivingOptions,
        *,
        among: Sequence[Place | Block],
        forced: Mapping[Atom, int],
        turning: Turning | None,
        stopwatch: Stopwatch,
        reporter: ProgressReporter,
    ) -> None:
        self.anatomy = anatomy
        self.reporter = reporter
        self._samples, self._options = samples, options
        self._among, self._forced = among, forced
        self._turning = turning
        self._stopwatch = stopwatch
        self._library: Library | None = None

    @cached_property
    def measured(self) -> Anatomy:
        """Of the model that statistics are taken of and students are made of: it computes the same as the given one.

        What stays whole stays as it is.
        """
        if self._turning is None:
            return self.anatomy
        narrower = {place.atom for place in self._among} | self._forced.keys()
        turnable = tuple(heads for heads in self.anatomy.turnable if heads.atom in narrower)
        return self._turning(replace(self.anatomy, turnable=turnable), self._samples.batches)

    @cached_property
    def readers(self) -> dict[str, Reader]:
        """Layers that sum over places, or give queries and keys, with the moments of what they take in."""
        return readers_of(self.measured, self._samples.batches)

    @property
    def has_library(self) -> bool:
        """Whether nothing is left to be tried."""
        return self._library is not None

    @property
    def library(self) -> Library:
        """All places at several widths."""
        if self._library is None:
            held_back = self._samples.held_back
            tried = score_widths(self.measured, self.readers, held_back, self._removal)
            entries = tuple(self.reporter.track(tried, total=len(self.anatomy.all_places), name="trying widths"))
            views = sum(map(len, self._samples.batches))
            self._library = Library(entries, (views, len(held_back)))
        return self._library

    @library.setter
    def library(self, library: Library) -> None:
        self._library = library

    def order(self, place: Place) -> Tensor:
        """Return the channels of a place, the most dispensable first."""
        if self._options.criterion == "weight-norm":
            # weights alone decide: no statistics are needed
            return weight_norm_order(place, self.anatomy.model, self.anatomy.found.products)
        return surgeon_removal(place, losing_at(place, self.readers)).order

    def _removal(self, place: Place, losing: Sequence[Losing]) -> Removal:
        """Say in which order the channels of a place go, and what each loses."""
        if self._options.criterion == "weight-norm":
            return removal_in_order(self.order(place), place, losing)
        return surgeon_removal(place, losing)

    @cached_property
    def counted(self) -> dict[str, Cost]:
        """What is known exactly, by unit."""
        found, blocks = self.anatomy.found, self.anatomy.blocks
        return {
            "macs": Macs(found, blocks),
            "parameters": Parameters(found, self.anatomy.model, blocks),
        }

    @cached_property
    def _whole_milliseconds(self) -> float:
        return self._stopwatch(self.anatomy.model, self.anatomy.probe[:1], repeats=REPEATS)

    @cached_property
    def _milliseconds(self) -> Cost:
        return Milliseconds(self.anatomy, partial(self._stopwatch, repeats=LAYER_REPEATS), self._whole_milliseconds)

    def cost(self, unit: str) -> Cost:
        """Return what widths cost in ``macs``, ``parameters`` or ``ms``."""
        return self._milliseconds if unit == "ms" else self.counted[unit]

    def limits(self, amounts: Mapping[str, float]) -> list[Limit]:
        """Return what may be spent, from amounts by their units."""
        return [Limit(unit, self.cost(unit).given(self._forced), most) for unit, most in amounts.items()]

    def check(self, limits: Sequence[Limit]) -> None:
        """Raise RequestError if not even the smallest widths meet all limits."""
        smallest = {place.atom: place.widths(place.width)[0] for place in self._among}
        for limit in limits:
            limit.check(smallest)

    def kept_for(self, limits: Sequence[Limit]) -> Kept:
        """Choose which channels stay, for what may be spent. Raises RequestError where that can't be met."""
        if self._options.scores:
            scored = self.library.options()
            options = [scored[place] for place in self._among]
            orders = {entry.place.atom: entry.removal.order for entry in self.library.entries}
        else:
            options = [Options.unscored(place.atom, place.widths(place.width)) for place in self._among]
            orders = {block.atom: torch.tensor([0]) for block in self.anatomy.blocks}
            orders |= {
                place.atom: self.order(place)
                for place in self.anatomy.places
                if place in self._among or place.atom in self._forced
            }
        widths = {**self._chosen(options, limits), **self._forced}
        return {
            place.atom: kept_channels(orders[place.atom], widths[place.atom])
            for place in self.anatomy.all_places
            if widths.get(place.atom, place.width) < place.width
        }

    def _chosen(self, options: Sequence[Options], limits: Sequence[Limit]) -> dict[Atom, int]:
        """Choose; where milliseconds are asked for measure the whole model, and choose again while it is slower."""
        asked = {limit.name: limit.most for limit in limits}
        measured = math.inf
        for _ in range(ATTEMPTS):
            widths = dict(ALLOCATIONS[self._options.allocation](options, limits))
            if "ms" not in asked:
                return widths
            measured = self._measured_milliseconds(widths)
            if measured <= asked["ms"]:
                return widths
            # what disturbed one measurement must not decide alone
            over = max(asked["ms"] / measured, LARGEST_STEP)
            limits = [replace(each, most=each.most * over) if each.name == "ms" else each for each in limits]
        raise RequestError(
            f"no student of {asked['ms']:.3g} ms was found: the last one takes {measured:.3g} ms on this device, and "
            f"the teacher {self._whole_milliseconds:.3g}; give a larger budget"
        )

    def _measured_milliseconds(self, widths: Widths) -> float:
        all_widths = {**widths, **self._forced}
        narrower = {atom: torch.arange(width) for atom, width in all_widths.items() if width < atom.size}
        student = narrow(self.anatomy.model, self.anatomy.found, narrower, self.anatomy.blocks)
        return self._stopwatch(student, self.anatomy.probe[:1], repeats=REPEATS)
