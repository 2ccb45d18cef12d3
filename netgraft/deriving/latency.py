"""What a narrowed model takes in milliseconds, without building it: from times of its layers at a few widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.axes import Atom, Axis
from netgraft.deriving.costs import Cost, Part, Widths
from netgraft.deriving.following import Axes
from netgraft.deriving.low_rank import first_of, pays, second_of
from netgraft.deriving.statistics import LayerCall, capture

FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of a layer's inputs and outputs, at which it is timed."""

Stopwatch = Callable[[nn.Module, Tensor], float]
"""From a model and what it takes in to milliseconds of one forward."""


class Milliseconds(Cost):
    """Milliseconds of one image, reckoned: the teacher's, less what its layers save at other widths.

    Convolutions and linear layers are timed alone, at a few widths of their inputs and outputs; between these times are
    interpolated. What is not a layer is taken to cost what it costs in the teacher, so the whole student must be timed
    in the end.

    Args:
        anatomy: Of the teacher.
        stopwatch: Times a forward.
        teacher: Milliseconds of the teacher.
    """

    def __init__(self, anatomy: Anatomy, stopwatch: Stopwatch, teacher: float) -> None:
        calls: dict[str, LayerCall] = {}
        layers = {product.layer: anatomy.model.get_submodule(product.layer) for product in anatomy.layers}
        capture(anatomy.model, anatomy.probe[:1], layers, lambda name, call: calls.update({name: call}))
        timed = {
            product.layer: _TimedLayer(
                product.inputs,
                product.outputs,
                tuple(block.atom for block in anatomy.blocks if block.name in product.inside),
                _times(layers[product.layer], calls[product.layer], stopwatch),
            )
            for product in anatomy.layers
            if product.layer in calls
        }
        two_each: list[_TimedLowRank] = []
        for name in anatomy.found.low_rank:
            first, second = timed.pop(first_of(name)), timed.pop(second_of(name))
            taken = anatomy.found.tensors[f"{first_of(name)}.weight"][1:]
            two_each.append(_TimedLowRank(first, second, taken))
        layers_alone: list[_TimedLayer | _TimedLowRank] = [*timed.values(), *two_each]
        parts = [Part(layer.atoms, layer.milliseconds) for layer in layers_alone]
        rest = max(0.0, teacher - sum(part({}) for part in parts))
        super().__init__([Part((), lambda widths: rest), *parts])


@dataclass(frozen=True, eq=False)
class _TimedLayer:
    """A layer with its times: one row for each fraction of the inputs, one column for each of the outputs."""

    inputs: Axis
    outputs: Axis
    blocks: tuple[Atom, ...]
    times: NDArray[np.float64]

    @property
    def atoms(self) -> list[Atom]:
        """All that its time depends on."""
        return [*self.inputs.atoms(), *self.outputs.atoms(), *self.blocks]

    def milliseconds(self, widths: Widths) -> float:
        return self.at(_kept_size(self.inputs, widths), _kept_size(self.outputs, widths), widths)

    def at(self, taken: int, given: int, widths: Widths) -> float:
        """Return them for some inputs and outputs; as many times as long where there are more than were timed."""
        if any(not widths.get(atom, 1) for atom in self.blocks):
            return 0.0
        part = given / self.outputs.size
        by_outputs = [np.interp(part, FRACTIONS, row) * max(part, 1.0) for row in self.times]
        return float(np.interp(taken / self.inputs.size, FRACTIONS, by_outputs))


@dataclass(frozen=True, eq=False)
class _TimedLowRank:
    """A convolution that is two, or one where two don't pay; one is timed as the first with the second's outputs."""

    first: _TimedLayer
    second: _TimedLayer
    taken: Axes

    @property
    def atoms(self) -> list[Atom]:
        """All that its time depends on."""
        return [*self.first.atoms, *self.second.atoms, *(atom for axis in self.taken for atom in axis.atoms())]

    def milliseconds(self, widths: Widths) -> float:
        sums_over = math.prod(_kept_size(axis, widths) for axis in self.taken)
        rank, given = (_kept_size(layer.outputs, widths) for layer in (self.first, self.second))
        if pays(rank, sums_over, given):
            return self.first.milliseconds(widths) + self.second.milliseconds(widths)
        return self.first.at(_kept_size(self.first.inputs, widths), given, widths)


def _kept_size(axis: Axis, widths: Widths) -> int:
    """Return how many indices of an axis are left."""
    return axis.kept_size(lambda atom: widths.get(atom, atom.size))


def _times(layer: nn.Module, call: LayerCall, stopwatch: Stopwatch) -> NDArray[np.float64]:
    known: dict[tuple[int, ...], float] = {}
    times = np.zeros((len(FRACTIONS), len(FRACTIONS)))
    for row, part in enumerate(FRACTIONS):
        for column, other in enumerate(FRACTIONS):
            narrow, inputs = _narrower(layer, call, part, other)
            key = (inputs.numel(), narrow.weight.numel(), len(narrow.weight))
            if key not in known:
                known[key] = stopwatch(narrow, inputs)
            times[row, column] = known[key]
    return times


def _narrower(layer: nn.Module, call: LayerCall, part: float, other: float) -> tuple[nn.Conv2d | nn.Linear, Tensor]:
    """Return a layer of a part of the inputs and another part of the outputs, and what it takes in."""
    device = call.inputs.device
    if call.kernel is None:
        features = _part(call.inputs.shape[-1], part)
        linear = nn.Linear(features, _part(call.channels, other), bias=layer.bias is not None, device=device)
        return linear, torch.zeros(*call.inputs.shape[:-1], features, device=device)
    # groups go along with the inputs: of a depthwise convolution the outputs are as many
    groups = 1 if call.groups == 1 else _part(call.groups, part)
    within, per_group = call.inputs.shape[1] // call.groups, call.channels // call.groups
    if call.groups == 1:
        within, per_group = _part(within, part), _part(per_group, other)
    convolution = nn.Conv2d(
        groups * within,
        groups * per_group,
        call.kernel,
        call.stride,
        dilation=call.dilation,
        groups=groups,
        bias=layer.bias is not None,
        device=device,
    )
    return convolution, torch.zeros(1, groups * within, *call.inputs.shape[2:], device=device)


def _part(size: int, fraction: float) -> int:
    return max(1, math.ceil(size * fraction))
