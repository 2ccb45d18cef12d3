"""What an adapter may pass through on its way into a convolution or a linear layer."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from timm.layers import Conv2dSame
from torch import fx, nn
from torch.nn import functional as F

from netgraft.modules import LayerTracer

_FLAT = "flat"

"""(B, C * positions), beside the layouts of cuts: what comes behind pooling and flattening."""


# Layers that commute with a mix of channels, so that an adapter passes through them unchanged: those that work on
# maps (B, C, H, W), and those that don't care about the shape.
_COMMUTING_ON_MAPS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d, F.avg_pool2d, F.adaptive_avg_pool2d)

_COMMUTING = (nn.Identity, nn.Dropout, "contiguous")


class _NotFoldableError(Exception):
    """Says which layer stands in the way."""


def _mixes_channels(module: nn.Module, layout: str) -> bool:
    """Whether ``module``, with its plain weight, is linear in the channels of an input of this layout, padding too."""
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return False  # the weight is computed, by weight normalisation for instance
    if isinstance(module, nn.Linear):
        return layout != "NCHW" and type(module).forward is nn.Linear.forward
    if not isinstance(module, nn.Conv2d) or layout != "NCHW" or module.groups != 1:
        return False
    # timm's TensorFlow-style convolution pads with zeros by itself; weight-standardised ones change the weight
    return type(module).forward in {nn.Conv2d.forward, Conv2dSame.forward}


_PLACES = {"NCHW": (2, 3), "NHWC": (1, 2), "tokens": (1,)}

"""Dimensions that are no channels; none of them is last but in NCHW."""

_PERMUTED = {("NCHW", (0, 2, 3, 1)): "NHWC", ("NHWC", (0, 3, 1, 2)): "NCHW"}


def _commutes(node: fx.Node, what: object, layout: str) -> str | None:
    """Layout of the output of a layer that a mix of channels passes through; None if it doesn't pass."""

    def argument(position: int, name: str, default: object) -> object:
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    if isinstance(what, nn.Flatten) or what in {torch.flatten, "flatten"}:
        spans = (what.start_dim, what.end_dim) if isinstance(what, nn.Flatten) else ()
        start, end = spans or (argument(1, "start_dim", 0), argument(2, "end_dim", -1))
        return _FLAT if (start, end) == (1, -1) and layout in {"NCHW", _FLAT} else None
    if what == "mean" and layout != _FLAT:
        over = argument(1, "dim", None)
        dims = (over,) if isinstance(over, int) else over
        rank = len(_PLACES[layout]) + 2
        over_places = isinstance(dims, list | tuple) and {int(str(dim)) % rank for dim in dims} == {*_PLACES[layout]}
        return (layout if argument(2, "keepdim", False) else _FLAT) if over_places else None
    if what in {"permute", torch.permute}:
        order = node.args[1:] if len(node.args) > 2 else argument(1, "dims", ())
        return _PERMUTED.get((layout, tuple(order))) if isinstance(order, list | tuple) else None
    if _is_one_of(what, _COMMUTING) or (_is_one_of(what, _COMMUTING_ON_MAPS) and layout == "NCHW"):
        return layout
    return None


def _is_one_of(what: object, kinds: tuple[object, ...]) -> bool:
    """Whether ``what`` is a module of one of these types, or itself one of these functions or methods."""
    return (type(what) if isinstance(what, nn.Module) else what) in kinds


def _consumers(block: nn.Module, layout: str) -> list[str]:
    """Names of the layers that together take in all of the block's input.

    Raises:
        _NotFoldableError: Something else needs the input too.
    """
    if _mixes_channels(block, layout):
        return [""]
    try:
        graph = LayerTracer().trace(block)
    except Exception as error:  # fx raises whatever the block's own forward raised
        raise _NotFoldableError(f"{type(block).__name__} can't be followed") from error
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]

    def follow(node: fx.Node, layout: str) -> Iterator[str]:
        for user in node.users:
            name = str(user.target)
            what = block.get_submodule(name) if user.op == "call_module" else user.target
            if isinstance(what, nn.Module) and _mixes_channels(what, layout):
                if calls.count(name) > 1:
                    raise _NotFoldableError(f"{name} is used more than once")
                yield name
                continue
            layout_behind = _commutes(user, what, layout)
            if layout_behind is not None:
                yield from follow(user, layout_behind)
            elif isinstance(what, nn.Module):
                raise _NotFoldableError(f"{name} ({type(what).__name__}) comes first")
            elif what in {operator.add, operator.iadd, torch.add, "add", "add_"}:
                raise _NotFoldableError("a residual path carries the input on")
            else:
                raise _NotFoldableError(f"{user.name} comes first")

    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    return list(dict.fromkeys(follow(placeholder, layout)))


def why_not_foldable(block: nn.Module, layout: str = "NCHW") -> str | None:
    """Say what keeps an adapter in front of ``block``, which takes in this layout, from folding; None if it folds."""
    try:
        return None if _consumers(block, layout) else "nothing takes the input"
    except _NotFoldableError as reason:
        return str(reason)
