"""Fold adapters into the convolutions or linear layers that follow: same function, fewer layers.

Folding is exact or isn't done. A bias-free 1x1 convolution ``A`` in front of a convolution ``W`` is the
convolution ``W'[o, i] = sum_j W[o, j] A[j, i]`` at each kernel position, borders included, because ``A`` maps zero
padding to zero padding. So it is where channels come last and ``A`` is a linear layer. In front of a residual path, a
normalisation or a max pool it is not, and stays; so does an adapter that converts layouts or sizes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netgraft.grafting.adapters import ConvertingAdapter, LinearAdapter
from netgraft.grafting.foldability import NotFoldableError, consumers, mixes_channels


@torch.no_grad()
def _absorb(layer: nn.Module, matrix: Tensor) -> None:
    """Let ``layer`` do what ``matrix`` (out, in), applied to its input channels, and it did one after another."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    # a linear layer behind a flattened map has a column for each channel and position
    columns = weight.unflatten(1, (matrix.shape[0], -1))
    # float64, so that the only rounding left is that of the result
    mixed = torch.einsum("ojp...,ji->oip...", columns.double(), matrix.double()).flatten(1, 2)
    # contiguous: convolutions round differently in another memory format, and files keep none
    layer.weight = nn.Parameter(
        mixed.to(weight.dtype).clone(memory_format=torch.contiguous_format), requires_grad=weight.requires_grad
    )
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = mixed.shape[1]
    elif isinstance(layer, nn.Linear):
        layer.in_features = mixed.shape[1]


@dataclass(frozen=True)
class Folding:
    """What became of the adapters of a student.

    Attributes:
        student: The same function with fewer layers; a copy.
        folded: Names of the layers that took an adapter in.
        kept: For each adapter that stayed a visible layer: its index in ``student`` and the reason.
    """

    student: nn.Sequential
    folded: tuple[str, ...]
    kept: dict[int, str]


def _adapter_layout(layer: nn.Module) -> str | None:
    """Layout of an adapter that is a matrix; None for other layers."""
    if isinstance(layer, LinearAdapter):
        return layer.layout
    one_by_one = (
        isinstance(layer, nn.Conv2d)
        and mixes_channels(layer, "NCHW")
        and (layer.kernel_size, layer.stride, layer.padding, layer.bias) == ((1, 1), (1, 1), (0, 0), None)
    )
    return "NCHW" if one_by_one else None


def fold_with_report(student: nn.Sequential) -> Folding:
    """Fold what folds exactly and say what didn't.

    Args:
        student: Blocks and adapters; stays as it is.

    Returns:
        What ``fold`` returns, and what became of each adapter.
    """
    layers: list[nn.Module] = []
    folded: list[str] = []
    kept: dict[int, str] = {}
    pending: tuple[str, Tensor] | None = None
    copied = copy.deepcopy(student)
    uses = Counter(module for layer in copied for module in layer.modules())
    for layer in copied:
        layout = _adapter_layout(layer)
        if layout is not None:
            assert isinstance(layer.weight, Tensor)
            matrix = layer.weight.detach().double().flatten(1)
            pending = layout, matrix if pending is None else matrix @ pending[1]
            continue
        if pending is not None:
            try:
                names = _consumers_used_once(layer, pending[0], uses)
            except NotFoldableError as reason:
                kept[len(layers)] = str(reason)
                layers.append(_as_layer(*pending, next(student.parameters())))
            else:
                for name in names:
                    _absorb(layer.get_submodule(name), pending[1])
                    folded.append(name or type(layer).__name__)
            pending = None
        if isinstance(layer, ConvertingAdapter):
            kept[len(layers)] = layer.conversion
        layers.append(layer)
    if pending is not None:
        kept[len(layers)] = "nothing follows"
        layers.append(_as_layer(*pending, next(student.parameters())))
    result = nn.Sequential(*layers)
    result.training = student.training  # the layers keep their own modes
    return Folding(result, tuple(folded), kept)


def _consumers_used_once(block: nn.Module, layout: str, uses: Mapping[nn.Module, int]) -> list[str]:
    """Names of the layers that an adapter in front of ``block`` folds into.

    Raises:
        NotFoldableError: It folds into none, or another part of the student uses one of them too.
    """
    names = consumers(block, layout)
    for name in reversed(names):
        if uses[block.get_submodule(name)] > 1:
            raise NotFoldableError(f"{name or type(block).__name__} is used more than once")
    return names


def _as_layer(layout: str, matrix: Tensor, like: Tensor) -> nn.Module:
    wide, narrow = matrix.shape[1], matrix.shape[0]
    adapter = nn.Conv2d(wide, narrow, 1, bias=False) if layout == "NCHW" else LinearAdapter(wide, narrow, layout)
    adapter.to(like.device, like.dtype)
    with torch.no_grad():
        adapter.weight.copy_(matrix.view_as(adapter.weight))
    return adapter


def fold(student: nn.Module) -> nn.Module:
    """Return the same function with fewer layers.

    Every run of bias-free 1x1 convolutions, or of linear adapters, among the children of ``student`` becomes one
    matrix, which is folded into the convolutions or linear layers that take it in, when these are all that takes it
    in. Otherwise it stays one visible layer. The result equals ``student`` in eval mode up to float rounding.

    Args:
        student: An ``nn.Sequential`` of blocks and adapters; other modules have no adapters.

    Returns:
        A copy with the adapters folded; ``student`` itself where it is no ``nn.Sequential``.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> adapter, block = nn.Conv2d(5, 4, 1, bias=False), nn.Conv2d(4, 6, 3, padding=1)
        >>> folded = fold(nn.Sequential(adapter, block))
        >>> folded
        Sequential(
          (0): Conv2d(5, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
        )
        >>> images = torch.randn(2, 5, 8, 8)
        >>> torch.allclose(folded(images), block(adapter(images)), atol=1e-5)
        True
    """
    return fold_with_report(student).student if isinstance(student, nn.Sequential) else student
