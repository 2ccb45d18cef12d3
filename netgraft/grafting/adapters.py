"""Adapters between a teacher's and a student's blocks: projections of the channels, in any layout, and conversions.

A projection is a mix of channels at each position, without a bias unless one is asked for: a 1x1 convolution on maps
with channels first, a linear layer where channels come last. Where teacher and student differ in more than their
widths, it stands between two layout conversions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netgraft.grafting.layout_conversion import LayoutConversion, describe_form, form_of
from netgraft.splitting.chain import Cut
from netgraft.splitting.layouts import Layout


class Projector(nn.Conv2d):
    """A bias-free 1x1 convolution (B, in, H, W) -> (B, out, H, W), the identity at first where widths are equal.

    It lets flow matrices of different widths be compared, which the article on them does not do.

    Args:
        in_channels: Width of what comes in.
        out_channels: Width of what goes out.

    Raises:
        ValueError: A width is no integer of at least 1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        check_widths(in_channels, out_channels)
        super().__init__(in_channels, out_channels, kernel_size=1, bias=False)
        if in_channels == out_channels:
            nn.init.dirac_(self.weight)


def check_widths(*widths: int) -> None:
    """Refuse what is no number of channels.

    Args:
        widths: Numbers of channels.

    Raises:
        ValueError: A width is no integer of at least 1.
    """
    if any(not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"numbers of channels must be integers of at least 1, not {', '.join(map(repr, widths))}")


class Adapter(Projector):
    """A projector that stays with the student until it is folded away.

    Without a bias it maps zero padding to zero padding, which is what lets it fold exactly into a padded
    convolution.

    Args:
        in_channels: Width of what comes in.
        out_channels: Width of what goes out.
        bias: Whether it has a bias (out,), zero at first.

    Raises:
        ValueError: A width is no integer of at least 1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_channels))

    @classmethod
    def selecting(cls, channels: Tensor, width: int, *, bias: bool = False) -> Adapter:
        """Return an adapter (B, width, H, W) -> (B, N, H, W) that keeps ``channels``, indices (N,)."""
        adapter = cls(width, len(channels), bias=bias)
        with torch.no_grad():
            adapter.weight.zero_()
            adapter.weight[torch.arange(len(channels)), channels] = 1.0
        return adapter

    @classmethod
    def placing(cls, channels: Tensor, width: int, *, bias: bool = False) -> Adapter:
        """Return an adapter (B, N, H, W) -> (B, width, H, W) that puts channel ``i`` at ``channels[i]``, else zeros."""
        adapter = cls(len(channels), width, bias=bias)
        with torch.no_grad():
            adapter.weight.zero_()
            adapter.weight[channels, torch.arange(len(channels))] = 1.0
        return adapter


class ChannelSelection(nn.Module):
    """Some of the channels of what crosses a cut; no weights.

    Args:
        channels: Their indices (N,).
        layout: Of what crosses: ``NCHW``, or one with channels last.
    """

    channels: Tensor

    def __init__(self, channels: Tensor, layout: str) -> None:
        super().__init__()
        self.register_buffer("channels", channels.clone(), persistent=False)
        self.dim = 1 if layout == "NCHW" else -1

    def forward(self, state: Tensor) -> Tensor:
        """Return the channels: (B, C, H, W) becomes (B, N, H, W), (B, ..., C) becomes (B, ..., N)."""
        return state.index_select(self.dim, self.channels)


class ChannelProjection(nn.Module):
    """What crosses a cut in another basis, of which some channels are left; nothing is learned.

    Args:
        matrix: From the channels that cross to those that are wanted, (N, C).
        layout: Of what crosses: ``NCHW``, or one with channels last.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, layout: str) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.clone(), persistent=False)
        self.dim = 1 if layout == "NCHW" else -1

    def forward(self, state: Tensor) -> Tensor:
        """Return the channels: (B, C, H, W) becomes (B, N, H, W), (B, ..., C) becomes (B, ..., N)."""
        return (state.movedim(self.dim, -1) @ self.matrix.to(state.dtype).T).movedim(-1, self.dim)


class AsKept(nn.Module):
    """Gives maps in the memory layout in which they are kept: what goes on with them has the same bits then."""

    def forward(self, state: Tensor) -> Tensor:
        """Return the same numbers."""
        return state.contiguous(memory_format=torch.channels_last) if state.ndim == 4 else state.contiguous()


def onto_start(start: Tensor, layout: str) -> nn.Module:
    """Return what takes a teacher's channels to those that its student starts with.

    Args:
        start: Their indices (N,), or the matrix (N, C) where the student is in another basis.
        layout: Of what crosses the cut: ``NCHW``, or one with channels last.
    """
    return (ChannelProjection if start.is_floating_point() else ChannelSelection)(start, layout)


class LinearAdapter(nn.Linear):
    """A linear layer (..., in) -> (..., out) on the channels, the identity at first if widths are equal.

    Args:
        in_channels: Width of what comes in.
        out_channels: Width of what goes out.
        layout: ``NHWC`` or ``tokens``: says which of the dimensions are positions.
        bias: Whether it has a bias (out,), zero at first.

    Raises:
        ValueError: Another layout.
    """

    def __init__(self, in_channels: int, out_channels: int, layout: str, *, bias: bool = False) -> None:
        if layout not in {"NHWC", "tokens"}:
            raise ValueError(f"layout must be NHWC or tokens, where channels come last, not {layout}")
        super().__init__(in_channels, out_channels, bias=False)
        self.layout = layout
        if in_channels == out_channels:
            nn.init.eye_(self.weight)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_channels))


Projection = Adapter | LinearAdapter


def in_full(start: Tensor, width: int) -> Tensor:
    """Return what a student starts with as a matrix (N, width).

    Args:
        start: Indices (N,) of the teacher's channels, or the matrix itself.
        width: Of the teacher.
    """
    return start if start.is_floating_point() else torch.eye(width)[start]


@torch.no_grad()
def start_with(mix: Projection, matrix: Tensor) -> None:
    """Give a projection the weights (out, in) that it starts with, in place."""
    mix.weight.copy_(matrix.reshape(mix.weight.shape))


class ConvertingAdapter(nn.Sequential):
    """A projection between two layout conversions, on the smaller one of the two maps, where it costs least.

    Conversions treat every channel alike, so the function is the same on either map; only a prefix token that is made
    of an averaged map weighs its positions a little differently where areas overlap.

    Args:
        source: Form of what comes in.
        projection: In the layout of one of the two.
        target: Form of what goes out.
        own: The one of the two in whose layout the projection works.
    """

    def __init__(self, source: Layout, projection: Projection, target: Layout, *, own: Layout) -> None:
        smallest = min(source, target, key=lambda form: form.size[0] * form.size[1])
        middle = Layout(own.kind, smallest.size, own.prefix_tokens)
        super().__init__(
            *([] if middle == source else [LayoutConversion(source, middle)]),
            projection,
            *([] if middle == target else [LayoutConversion(middle, target)]),
        )
        self.source = source
        self.target = target

    @property
    def projection(self) -> Projection:
        """The mix of channels alone."""
        return next(layer for layer in self if isinstance(layer, Adapter | LinearAdapter))

    @property
    def weight(self) -> Tensor:
        """Of the mix of channels."""
        return self.projection.weight

    @property
    def conversion(self) -> str:
        """What it does besides, in words."""
        return f"it converts {describe_form(self.source)} to {describe_form(self.target)}"


AnyAdapter = Projection | ConvertingAdapter


@dataclass(frozen=True)
class AdapterForm:
    """What new adapters are like.

    Attributes:
        bias: Whether they have one, zero at first.
        init: How weights start: ``fan-in`` (PyTorch's default: uniform, of deviation ``1 / sqrt(3 in)``; the identity
            where widths are equal) or ``fan-out`` (He et al. 2015: normal, of deviation ``sqrt(2 / out)``).

    Raises:
        ValueError: Another ``init``.
    """

    bias: bool = False
    init: str = "fan-in"

    def __post_init__(self) -> None:
        if self.init not in {"fan-in", "fan-out"}:
            raise ValueError(f"init of adapters must be fan-in or fan-out, not {self.init!r}")


PLAIN = AdapterForm()


def projection(layout: str, in_channels: int, out_channels: int, form: AdapterForm = PLAIN) -> Projection:
    """Return a new projection in a layout: a 1x1 convolution for ``NCHW``, a linear layer for ``NHWC`` and ``tokens``.

    Raises:
        ValueError: Another layout, or a width below 1.
    """
    made: Projection
    if layout == "NCHW":
        made = Adapter(in_channels, out_channels, bias=form.bias)
    else:
        made = LinearAdapter(in_channels, out_channels, layout, bias=form.bias)
    if form.init == "fan-out":
        nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def deployed_layer(layout: str, in_channels: int, out_channels: int, *, bias: bool) -> nn.Conv2d | LinearAdapter:
    """Return what a deployed student keeps of a projection: for ``NCHW`` a plain 1x1 convolution, else a linear layer.

    Raises:
        ValueError: Another layout.
    """
    if layout == "NCHW":
        return nn.Conv2d(in_channels, out_channels, 1, bias=bias)
    return LinearAdapter(in_channels, out_channels, layout, bias=bias)


def between(source: Cut, target: Cut, mix: Projection, *, own: Cut) -> AnyAdapter:
    """Return an adapter from one cut to another.

    Args:
        source: What comes in.
        target: What goes out.
        mix: The projection of channels, in the layout of ``own``.
        own: One of the two cuts: the student's.

    Returns:
        ``mix`` itself where both cuts have the same form, or else ``mix`` between conversions.
    """
    forms = form_of(source), form_of(target)
    if forms[0] == forms[1]:
        return mix
    return ConvertingAdapter(forms[0], mix, forms[1], own=form_of(own))
