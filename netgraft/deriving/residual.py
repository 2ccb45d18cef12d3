"""What is added to a layer's output in a residual network, seen while it runs: the shortcut beside a branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netgraft.deriving.statistics import LayerCall, capture


@dataclass(frozen=True, eq=False)
class Addend:
    """What is added to a layer's output, behind what may stand in between: a norm, a scale for each channel.

    Attributes:
        other: In the form of the layer's output, (B, O, H', W') or (..., O).
        scale: What the output is multiplied by before, (O,).
    """

    other: Tensor
    scale: Tensor


class _Finished(Exception):  # noqa: N818  (no error: it ends a forward whose rest nobody needs)
    """The addition has been reached, or something that can't be followed."""


@dataclass(frozen=True, eq=False)
class _Way:
    """From a layer's output to where it has come.

    Attributes:
        at: The tensor there.
        scale: Of each channel, (O,).
        channels: Dimension that they are in.
        back: From the form of ``at`` to that of the layer's output.
    """

    at: Tensor
    scale: Tensor
    channels: int
    back: Callable[[Tensor], Tensor]


class _Follow(TorchFunctionMode):
    """Follows what a layer gives until something is added to it; nothing else that it meets may change it."""

    def __init__(self) -> None:
        super().__init__()
        self.way: _Way | None = None
        self.addend: Addend | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.way is None or not any(each is self.way.at for each in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        name = func.__name__.strip("_")
        if name in {"add", "radd", "iadd"}:
            self.addend = _addend(self.way, args, kwargs)
            raise _Finished
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):  # and not its shape, for instance
            step = _STEPS.get(name)
            way = None if step is None else step(self.way, args, kwargs)
            if way is None:
                raise _Finished
            self.way = replace(way, at=result)
        return result


def _addend(way: _Way, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Addend | None:
    others = [each for each in args if each is not way.at]
    if kwargs or len(args) != 2 or len(others) != 1 or not isinstance(others[0], Tensor):
        return None
    if others[0].shape != way.at.shape:
        return None
    return Addend(way.back(others[0]), way.scale)


def _through_norm(way: _Way, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Way | None:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {"weight": None, "training": False, "eps": 1e-5} | dict(zip(names, args, strict=False)) | dict(kwargs)
    if given["training"] or given["running_var"] is None or way.channels != 1:
        return None
    scale = (given["running_var"] + given["eps"]).rsqrt()
    return replace(way, scale=way.scale * (scale if given["weight"] is None else scale * given["weight"]))


def _through_product(way: _Way, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Way | None:
    other = next((each for each in args if each is not way.at), None)
    if kwargs or not isinstance(other, Tensor) or other.ndim > way.at.ndim:
        return None
    one_a_channel = [1] * way.at.ndim
    one_a_channel[way.channels] = len(way.scale)
    if [1] * (way.at.ndim - other.ndim) + list(other.shape) != one_a_channel:
        return None
    return replace(way, scale=way.scale * other.flatten())


def _through_permutation(way: _Way, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Way | None:
    dims = args[1:] if len(args) > 2 else args[-1]
    if kwargs or not all(isinstance(dim, int) for dim in dims) or len(dims) != way.at.ndim:
        return None
    forward = [dim % way.at.ndim for dim in dims]
    backward = [forward.index(dim) for dim in range(len(forward))]
    earlier = way.back
    return replace(way, channels=forward.index(way.channels), back=lambda tensor: earlier(tensor.permute(backward)))


def _unchanged(way: _Way, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Way:
    return way


_STEPS: Mapping[str, Callable[[_Way, tuple[Any, ...], Mapping[str, Any]], _Way | None]] = {
    "batch_norm": _through_norm,
    "mul": _through_product,
    "rmul": _through_product,
    "permute": _through_permutation,
    "dropout": _unchanged,
    "contiguous": _unchanged,
}


@dataclass(frozen=True, eq=False)
class Seen:
    """A layer's call in a block, with what is added to its output.

    Attributes:
        call: Of the layer.
        addend: None where nothing is added, or something that can't be followed comes before.
    """

    call: LayerCall
    addend: Addend | None

    def addend_rows(self, rows: Tensor) -> Tensor:
        """Return what is added to some rows of the output, (R, O)."""
        assert self.addend is not None
        return replace(self.call, outputs=self.addend.other).output_rows(rows)


@torch.no_grad()
def seen_in(block: nn.Module, state: Tensor, layer: nn.Module) -> Seen:
    """Run a block in eval mode up to where something is added to what one of its layers gives.

    Args:
        block: Of a chain that shares the layer's weights.
        state: What it takes in; changed where the block works in place.
        layer: Convolution or linear layer, called by the block.
    """
    calls, follow = _followed(block, state, layer)
    return Seen(calls[0], follow.addend)


@torch.no_grad()
def scale_behind(model: nn.Module, images: Tensor, layer: nn.Module) -> Tensor:
    """Return what a layer's output is multiplied by, channel by channel, up to what can't be followed: (O,).

    Args:
        model: Around the layer, which it calls.
        images: What it takes in; changed where the model works in place.
        layer: Convolution or linear layer.
    """
    _, follow = _followed(model, images, layer)
    assert follow.way is not None
    return follow.way.scale


def _followed(block: nn.Module, state: Tensor, layer: nn.Module) -> tuple[list[LayerCall], _Follow]:
    calls: list[LayerCall] = []
    follow = _Follow()

    def seen(_: str, call: LayerCall) -> None:
        # what comes behind may work in place
        calls.append(replace(call, outputs=call.outputs.clone()))
        channels = call.outputs.ndim - 1 if call.kernel is None else 1
        follow.way = _Way(call.outputs, torch.ones(call.channels).to(call.outputs), channels, lambda tensor: tensor)

    with suppress(_Finished), follow:
        capture(block, state, {"": layer}, seen)
    return calls, follow
