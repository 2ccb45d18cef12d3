"""Run a traced forward once and note, call by call, what came out and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from netgraft.modules import flop_counter


@dataclass(frozen=True)
class Shape:
    """Of a tensor, batch dimension included."""

    extents: tuple[int, ...]


@dataclass(frozen=True)
class Numbers:
    """A value without tensors in it: a size, a device, a tuple of such."""

    value: object


@dataclass(frozen=True)
class TensorContainer:
    """A container that holds tensors."""


Value = Shape | Numbers | TensorContainer


@dataclass(frozen=True, eq=False)
class PropagatedShapes:
    """What one run of a traced forward showed.

    Attributes:
        values: Of each call.
        macs: Multiply-accumulates from the images up to and including each call, for the whole batch.
    """

    values: Mapping[fx.Node, Value]
    macs: Mapping[fx.Node, int]


class _ShapePropagator(fx.Interpreter):
    """Notes every value's kind and lets it go."""

    def __init__(self, model: nn.Module, graph: fx.Graph, counter: FlopCounterMode) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False
        self._counter = counter
        self.values: dict[fx.Node, Value] = {}
        self.macs: dict[fx.Node, int] = {}

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        # a graph keeps lists that can't be changed; some forwards fill the list that they are given
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(_changeable, args)), {name: _changeable(value) for name, value in kwargs.items()}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = kind_of(value)
        self.macs[n] = self._counter.get_total_flops() // 2
        return value


def _changeable(value: Any) -> Any:
    return [_changeable(item) for item in value] if isinstance(value, list) else value


def kind_of(value: object) -> Value:
    """Reduce a value to what a cut needs to know of it."""
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape))
    return Numbers(value) if _is_plain(value) else TensorContainer()


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, int | float | bool | str | torch.dtype | torch.device)


@torch.no_grad()
def propagate_shapes(model: nn.Module, graph: fx.Graph, images: Tensor) -> PropagatedShapes:
    """Run ``graph``, the traced forward of ``model``, on images (B, C, H, W) in the model's present mode."""
    with flop_counter() as counter:
        propagator = _ShapePropagator(model, graph, counter)
        propagator.run(images.clone())  # a forward may work in place
    return PropagatedShapes(propagator.values, propagator.macs)
