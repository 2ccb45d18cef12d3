"""Conversions between the forms of two cuts: channels first, channels last or tokens, map sizes, prefix tokens.

A conversion has no weights and treats every channel alike, so it commutes with any mix of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.splitting.chain import Cut
from netgraft.splitting.layouts import Layout

MAP_LAYOUTS = ("NCHW", "NHWC", "tokens")
"""In which a map can be found again; what else crosses a cut can't be converted."""


def form_of(cut: Cut) -> Layout:
    """Return what there is to know of a cut besides its channels."""
    return Layout(cut.layout, cut.size, cut.prefix_tokens)


def holds_map(cut: Cut) -> bool:
    """Whether a map of known size crosses."""
    return cut.layout in MAP_LAYOUTS and bool(cut.size)


def describe_form(form: Layout) -> str:
    """Name a form for people: ``NCHW 7x7``, or ``tokens 14x14+1`` with the number of prefix tokens."""
    size = "x".join(map(str, form.size))
    return f"{form.kind} {size}" + (f"+{form.prefix_tokens}" if form.prefix_tokens else "")


class LayoutConversion(nn.Module):
    """Brings tensors of one form into another: (B, C, H, W), (B, H, W, C) or (B, P + H * W, C) with P prefix tokens.

    A larger map is averaged over the areas of the smaller one, a smaller one interpolated bilinearly. Of prefix
    tokens the first are carried over, as many as both have; those that the target has besides are the mean over the
    map, those that it lacks are dropped.

    Args:
        source: Of what comes in.
        target: Of what goes out.

    Raises:
        ValueError: One of them is no map.
    """

    def __init__(self, source: Layout, target: Layout) -> None:
        if not all(form.kind in MAP_LAYOUTS and form.size for form in (source, target)):
            raise ValueError(
                f"expected two forms that hold a map, got {describe_form(source)} and {describe_form(target)}; "
                "choose cuts where maps cross"
            )
        super().__init__()
        self.source = source
        self.target = target

    def forward(self, state: Tensor) -> Tensor:
        """Convert a tensor of the source's form (B, ...) into one of the target's; channels and their order stay."""
        source, target = self.source, self.target
        channels_last = source.map_of(state)  # (B, H, W, C)
        maps = resized(channels_last.movedim(-1, 1), target.size)
        if target.kind == "NCHW":
            return maps
        converted = maps.movedim(1, -1)
        if target.kind == "NHWC":
            return converted.contiguous()
        kept = min(source.prefix_tokens, target.prefix_tokens)
        added = target.prefix_tokens - kept
        parts = [state[:, :kept]] if kept else []
        if added:
            parts.append(channels_last.mean((1, 2))[:, None].expand(-1, added, -1))
        return torch.cat([*parts, converted.flatten(1, 2)], dim=1)

    def extra_repr(self) -> str:
        """Name both forms."""
        return f"{describe_form(self.source)} -> {describe_form(self.target)}"


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bring maps to another size: averaged where it is smaller, interpolated where it is larger.

    Args:
        maps: (B, C, H, W).
        size: Height and width of the result.

    Returns:
        Maps (B, C, *size).
    """
    height, width = size
    smaller = (min(height, maps.shape[2]), min(width, maps.shape[3]))
    if smaller != maps.shape[2:]:
        maps = F.adaptive_avg_pool2d(maps, smaller)
    if smaller != (height, width):
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    return maps
