"""Fold 1x1 adapters into the convolutions or linear layers that follow: same function, fewer layers.

Folding is exact or isn't done. A bias-free 1x1 convolution ``A`` in front of a convolution ``W`` is the
convolution ``W'[o, i] = sum_j W[o, j] A[j, i]`` at each kernel position, borders included, because ``A`` maps zero
padding to zero padding. In front of a residual path, a normalisation or a max pool it is not, and stays.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

# Layers that commute with a mix of channels, so that an adapter passes through them unchanged.
_COMMUTING_MODULES = (
    nn.Identity,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.ZeroPad2d,
    nn.Dropout,
)
_COMMUTING_FUNCTIONS = {F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten}
_COMMUTING_METHODS = {"mean", "flatten", "contiguous"}


class _NotFoldableError(Exception):
    """Says which layer stands in the way."""


class LayerTracer(fx.Tracer):
    """Traces a block down to its layers: modules of torch itself and modules without children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at torch's own modules and at modules without children."""
        return super().is_leaf_module(m, module_qualified_name) or not any(True for _ in m.children())


def _mixes_channels(module: nn.Module) -> bool:
    """Whether ``module`` is linear in its input channels with its plain weight, padding included."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or module.padding_mode not in {"zeros", "reflect"}:
        return False
    # timm's TensorFlow-style convolution pads with zeros by itself; weight-standardised ones change the weight
    return type(module).forward is nn.Conv2d.forward or type(module).__name__ == "Conv2dSame"


def _consumers(block: nn.Module) -> list[str]:
    """Names of the layers that together take in all of the block's input.

    Raises:
        _NotFoldableError: Something else needs the input too.
    """
    try:
        graph = LayerTracer().trace(block)
    except Exception as error:  # fx raises whatever the block's own forward raised
        raise _NotFoldableError(f"{type(block).__name__} can't be followed") from error
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]

    def follow(node: fx.Node) -> Iterator[str]:
        for user in node.users:
            name = str(user.target)
            if user.op == "call_module":
                module = block.get_submodule(name)
                if _mixes_channels(module):
                    if calls.count(name) > 1:
                        raise _NotFoldableError(f"{name} is used more than once")
                    yield name
                elif isinstance(module, _COMMUTING_MODULES):
                    yield from follow(user)
                else:
                    raise _NotFoldableError(f"{name} ({type(module).__name__}) comes first")
            elif (user.op == "call_function" and user.target in _COMMUTING_FUNCTIONS) or (
                user.op == "call_method" and name in _COMMUTING_METHODS
            ):
                yield from follow(user)
            elif user.target in {operator.add, operator.iadd, torch.add} or name in {"add", "add_"}:
                raise _NotFoldableError("a residual path carries the input on")
            else:
                raise _NotFoldableError(f"{name} comes first")

    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    return list(dict.fromkeys(follow(placeholder)))


def why_not_foldable(block: nn.Module) -> str | None:
    """Say what keeps an adapter in front of ``block`` from folding into it; None if it folds."""
    try:
        return None if _consumers(block) else "nothing takes the input"
    except _NotFoldableError as reason:
        return str(reason)


@torch.no_grad()
def _absorb(layer: nn.Module, matrix: Tensor) -> None:
    """Let ``layer`` do what ``matrix`` (out, in), applied to its input channels, and it did one after another."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    # float64, so that the only rounding left is that of the result
    mixed = torch.einsum("oj...,ji->oi...", weight.double(), matrix.double())
    layer.weight = nn.Parameter(mixed.to(weight.dtype), requires_grad=weight.requires_grad)
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = matrix.shape[1]
    elif isinstance(layer, nn.Linear):
        layer.in_features = matrix.shape[1]


@dataclass(frozen=True)
class Folding:
    """What became of the adapters of a student.

    Attributes:
        student: The same function with fewer layers; a copy, except where nothing was to do.
        folded: Names of the layers that took an adapter in.
        kept: For each adapter that stayed a visible layer: its place in ``student`` and the reason.
    """

    student: nn.Sequential
    folded: tuple[str, ...]
    kept: dict[int, str]


def _is_adapter(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.bias is None


def fold_with_report(student: nn.Sequential) -> Folding:
    """Fold what folds exactly and say what didn't; see :func:`fold`."""
    layers: list[nn.Module] = []
    folded: list[str] = []
    kept: dict[int, str] = {}
    pending: Tensor | None = None
    for layer in copy.deepcopy(student):
        if _is_adapter(layer):
            assert isinstance(layer.weight, Tensor)
            matrix = layer.weight.detach().double().flatten(1)
            pending = matrix if pending is None else matrix @ pending
            continue
        if pending is not None:
            reason = why_not_foldable(layer)
            if reason is None:
                for name in _consumers(layer):
                    _absorb(layer.get_submodule(name), pending)
                    folded.append(name)
            else:
                kept[len(layers)] = reason
                layers.append(_visible(pending, next(student.parameters())))
            pending = None
        layers.append(layer)
    if pending is not None:
        kept[len(layers)] = "nothing follows"
        layers.append(_visible(pending, next(student.parameters())))
    return Folding(nn.Sequential(*layers), tuple(folded), kept)


def _visible(matrix: Tensor, like: Tensor) -> nn.Conv2d:
    adapter = nn.Conv2d(matrix.shape[1], matrix.shape[0], 1, bias=False, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        adapter.weight.copy_(matrix[:, :, None, None])
    return adapter


def fold(student: nn.Module) -> nn.Module:
    """Return the same function with fewer layers.

    Every run of bias-free 1x1 convolutions among the children of ``student`` becomes one matrix, which is folded
    into the convolutions or linear layers that take it in, when these are all that takes it in. Otherwise it stays
    one visible 1x1 convolution. The result equals ``student`` in eval mode up to float rounding.

    Args:
        student: An ``nn.Sequential`` of blocks and adapters (other modules have no adapters and are returned).
    """
    return fold_with_report(student).student if isinstance(student, nn.Sequential) else student
