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


class NotFoldableError(Exception):
    """Says which layer keeps an adapter from folding."""


def mixes_channels(module: nn.Module, layout: str) -> bool:
    """Whether ``module``, with its plain weight, is linear in the channels of an input of this layout, padding too."""
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return False  # the weight is computed, by weight normalisation for instance
    if isinstance(module, nn.Linear):
        return layout != "NCHW" and type(module).forward is nn.Linear.forward
    if not isinstance(module, nn.Conv2d) or layout != "NCHW" or module.groups != 1:
        return False
    # timm's TensorFlow-style convolution pads with zeros by itself; weight-standardised ones change the weight
    return type(module).forward in {nn.Conv2d.forward, Conv2dSame.forward}


_SPATIAL = {"NCHW": (2, 3), "NHWC": (1, 2), "tokens": (1,)}
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
        rank = len(_SPATIAL[layout]) + 2
        over_positions = isinstance(dims, list | tuple) and {int(str(dim)) % rank for dim in dims} == {
            *_SPATIAL[layout]
        }
        return (layout if argument(2, "keepdim", False) else _FLAT) if over_positions else None
    if what in {"permute", torch.permute}:
        order = node.args[1:] if len(node.args) > 2 else argument(1, "dims", ())
        return _PERMUTED.get((layout, tuple(order))) if isinstance(order, list | tuple) else None
    if _is_one_of(what, _COMMUTING) or (_is_one_of(what, _COMMUTING_ON_MAPS) and layout == "NCHW"):
        return layout
    return None


def _is_one_of(what: object, kinds: tuple[object, ...]) -> bool:
    """Whether ``what`` is a module of one of these types, or itself one of these functions or methods."""
    return (type(what) if isinstance(what, nn.Module) else what) in kinds


def consumers(block: nn.Module, layout: str, *, bias: bool = False) -> list[str]:
    """Return the names of the layers that together take in all of the block's input.

    Args:
        block: Takes in one tensor.
        layout: Of that tensor: ``NCHW``, ``NHWC`` or ``tokens``.
        bias: Whether a value for each channel, the same at all positions, is to be taken in as well.

    Raises:
        NotFoldableError: Something else needs the input too, or nothing does, or one of the layers can't take a bias.
    """
    if mixes_channels(block, layout):
        if bias:
            _check_bias(type(block).__name__, block)
        return [""]
    try:
        graph = LayerTracer().trace(block)
    except Exception as error:  # fx raises whatever the block's own forward raised
        raise NotFoldableError(f"{type(block).__name__} can't be traced") from error
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]

    def consumers_behind(node: fx.Node, layout: str) -> Iterator[str]:
        for user in node.users:
            name = str(user.target)
            what = block.get_submodule(name) if user.op == "call_module" else user.target
            if isinstance(what, nn.Module) and mixes_channels(what, layout):
                if calls.count(name) > 1:
                    raise NotFoldableError(f"{name} is used more than once")
                if bias:
                    _check_bias(name, what)
                yield name
            else:
                yield from consumers_behind(user, _layout_behind(user, what, layout, bias))

    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    found = list(dict.fromkeys(consumers_behind(placeholder, layout)))
    if not found:
        raise NotFoldableError("nothing takes the input")
    return found


def _layout_behind(node: fx.Node, what: object, layout: str, bias: bool) -> str:
    """Return the layout of the output of a layer that an adapter passes through.

    Raises:
        NotFoldableError: It doesn't pass.
    """
    layout_behind = _commutes(node, what, layout)
    if layout_behind is None:
        raise NotFoldableError(_obstacle(node, what))
    if bias and not _passes_bias(node, what):
        name = node.target if isinstance(what, nn.Module) else node.name
        raise NotFoldableError(f"{name} doesn't pass the adapter's bias on unchanged")
    return layout_behind


def _check_bias(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose own bias can't take in that of an adapter.

    Raises:
        NotFoldableError: It has none, or it pads with zeros, to which the adapter has added nothing.
    """
    if "bias" not in dict(layer.named_parameters(recurse=False)):
        raise NotFoldableError(f"{name} has no bias that could take in the adapter's")
    if isinstance(layer, nn.Conv2d) and _pads_with_zeros(layer):
        raise NotFoldableError(f"{name} pads with zeros, to which the adapter's bias isn't added")


def _pads_with_zeros(layer: nn.Conv2d) -> bool:
    if isinstance(layer, Conv2dSame):
        return layer.kernel_size != (1, 1)  # how much depends on the map
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False  # what repeats the map repeats the bias
    return layer.kernel_size != (1, 1) if layer.padding == "same" else layer.padding != (0, 0)


def _passes_bias(node: fx.Node, what: object) -> bool:
    """Whether a layer that mixes of channels pass through gives a map of one value as a map of this value."""
    if isinstance(what, nn.ZeroPad2d):
        return False
    if isinstance(what, nn.AvgPool2d):
        return what.padding in (0, (0, 0)) and what.divisor_override is None
    # with nothing but a kernel and a stride there is no padding
    return what is not F.avg_pool2d or (len(node.args) <= 3 and not node.kwargs.keys() - {"kernel_size", "stride"})


def _obstacle(node: fx.Node, what: object) -> str:
    """Say what a mix of channels doesn't pass through."""
    if isinstance(what, nn.Module):
        return f"{node.target} ({type(what).__name__}) comes first"
    if what in {operator.add, operator.iadd, torch.add, "add", "add_"}:
        return "a residual path carries the input on"
    return f"{node.name} comes first"


def why_not_foldable(block: nn.Module, layout: str = "NCHW", *, bias: bool = False) -> str | None:
    """Say what keeps an adapter from folding.

    Args:
        block: What follows the adapter.
        layout: Of the tensor between them: ``NCHW``, ``NHWC`` or ``tokens``.
        bias: Whether the adapter has one.

    Returns:
        The reason, in words; None if the adapter folds.
    """
    try:
        consumers(block, layout, bias=bias)
    except NotFoldableError as reason:
        return str(reason)
    return None
