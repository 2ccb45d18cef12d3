"""Fold adapters into the convolutions or linear layers that follow: same function, fewer layers.

Folding is exact or isn't done. A bias-free 1x1 convolution ``A`` in front of a convolution ``W`` is the
convolution ``W'[o, i] = sum_j W[o, j] A[j, i]`` at each kernel position, borders included, because ``A`` maps zero
padding to zero padding. So it is where channels come last and ``A`` is a linear layer. In front of a residual path, a
normalisation or a max pool it is not, and stays; so does an adapter that converts layouts or sizes.

The bias ``a`` of an adapter becomes a part of the following layer's, ``b'[o] = b[o] + sum W[o, j] a[j]`` over channels
and kernel positions, where nothing pads with zeros in between: at a border there would be too much of it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netgraft.grafting.adapters import Adapter, ConvertingAdapter, LinearAdapter, deployed_layer
from netgraft.grafting.foldability import NotFoldableError, consumers, mixes_channels


@dataclass(frozen=True)
class _Mix:
    """What a run of adapters does to the channels (..., in) at each position: ``matrix`` and then ``bias``.

    Attributes:
        layout: Of the tensor.
        matrix: (out, in), in float64, so that the only rounding left is that of the result.
        bias: (out,), likewise; None without one.
    """

    layout: str
    matrix: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Module) -> _Mix | None:
        """Read an adapter; None for other layers."""
        if isinstance(layer, LinearAdapter):
            layout = layer.layout
        elif _is_one_by_one(layer):
            layout = "NCHW"
        else:
            return None
        assert isinstance(layer.weight, Tensor)
        assert layer.bias is None or isinstance(layer.bias, Tensor)
        # on the CPU: not every device has float64
        bias = None if layer.bias is None else layer.bias.detach().cpu().double()
        return cls(layout, layer.weight.detach().cpu().double().flatten(1), bias)

    def then(self, later: _Mix) -> _Mix:
        """Return both as one: ``x -> B(Ax + a) + b`` is ``BA`` and then ``Ba + b``."""
        parts = [later.bias] if self.bias is None else [later.matrix @ self.bias, later.bias]
        biases = [part for part in parts if part is not None]
        return _Mix(later.layout, later.matrix @ self.matrix, torch.stack(biases).sum(0) if biases else None)

    def as_layer(self, like: Tensor) -> nn.Module:
        """Return a layer that does this, of the type and on the device of ``like``."""
        out_channels, in_channels = self.matrix.shape
        adapter = deployed_layer(self.layout, in_channels, out_channels, bias=self.bias is not None)
        adapter.to(like.device, like.dtype)
        with torch.no_grad():
            adapter.weight.copy_(self.matrix.view_as(adapter.weight))
            if self.bias is not None:
                assert adapter.bias is not None
                adapter.bias.copy_(self.bias)
        return adapter


def _is_one_by_one(layer: nn.Module) -> bool:
    """Whether a layer is a 1x1 convolution; with a bias only if it is an adapter, others may be a model's own."""
    return (
        isinstance(layer, nn.Conv2d)
        and mixes_channels(layer, "NCHW")
        and (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))
        and (layer.bias is None or isinstance(layer, Adapter))
    )


@torch.no_grad()
def _absorb(layer: nn.Module, mix: _Mix) -> None:
    """Let ``layer`` do what ``mix`` and it did one after another."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    # a linear layer behind a flattened map has a column for each channel and position
    columns = weight.unflatten(1, (mix.matrix.shape[0], -1)).cpu().double()
    mixed = torch.einsum("ojp...,ji->oip...", columns, mix.matrix).flatten(1, 2)
    if mix.bias is not None:
        own = layer.bias
        assert isinstance(own, nn.Parameter), "foldability asks for one"
        added = torch.einsum("ojp,j->o", columns.flatten(2), mix.bias)
        layer.bias = nn.Parameter((own.cpu().double() + added).to(own), requires_grad=own.requires_grad)
    # contiguous: convolutions round differently in another memory format, and files keep none
    layer.weight = nn.Parameter(
        mixed.to(weight).clone(memory_format=torch.contiguous_format), requires_grad=weight.requires_grad
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
    pending: _Mix | None = None
    copied = copy.deepcopy(student)
    uses = Counter(module for layer in copied for module in layer.modules())
    for layer in copied:
        mix = _Mix.of(layer)
        if mix is not None:
            pending = mix if pending is None else pending.then(mix)
            continue
        if pending is not None:
            try:
                names = _consumers_used_once(layer, pending, uses)
            except NotFoldableError as reason:
                kept[len(layers)] = str(reason)
                layers.append(pending.as_layer(next(student.parameters())))
            else:
                for name in names:
                    _absorb(layer.get_submodule(name), pending)
                    folded.append(name or type(layer).__name__)
            pending = None
        if isinstance(layer, ConvertingAdapter):
            kept[len(layers)] = layer.conversion
        layers.append(layer)
    if pending is not None:
        kept[len(layers)] = "nothing follows"
        layers.append(pending.as_layer(next(student.parameters())))
    result = nn.Sequential(*layers)
    result.training = student.training  # the layers keep their own modes
    return Folding(result, tuple(folded), kept)


def _consumers_used_once(block: nn.Module, mix: _Mix, uses: Mapping[nn.Module, int]) -> list[str]:
    """Names of the layers that adapters in front of ``block`` fold into.

    Raises:
        NotFoldableError: It folds into none, or another part of the student uses one of them too.
    """
    names = consumers(block, mix.layout, bias=mix.bias is not None)
    for name in reversed(names):
        if uses[block.get_submodule(name)] > 1:
            raise NotFoldableError(f"{name or type(block).__name__} is used more than once")
    return names


def fold(student: nn.Module) -> nn.Module:
    """Return the same function with fewer layers.

    Every run of bias-free 1x1 convolutions, or of adapters of any kind, among the children of ``student`` becomes one
    matrix, and one bias if an adapter has one, which are folded into the convolutions or linear layers that take them
    in, when these are all that takes them in. Otherwise they stay one visible layer. The result equals ``student`` in
    eval mode up to float rounding.

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
