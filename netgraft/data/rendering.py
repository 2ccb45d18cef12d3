"""Pixels of views from images and recipes, on the processor: the same bits in any batch and on any number of threads.

Each box is resampled by a call of its own, sums are taken over integers, and all else is done pixel by pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from netgraft.data.threads import share_out
from netgraft.data.view_recipes import Ingredients, Recipes

# Crops, resizes and colours are torch's own calls: torchvision's v2 functions crop and resize to the same bits more
# slowly, one view at a time, and round colours in another way.

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma

PIXELS = 2**16  # of the views that a thread computes at a time: they stay in a core's cache

WORTH_A_THREAD = 2**13  # pixels of a view; of smaller ones Python's own work is the larger part, which takes turns


@dataclass(frozen=True)
class Rendering:
    """How pixels are computed.

    Attributes:
        size: Channels, height and width of a view.
        mode: ``bilinear`` or ``bicubic``, of boxes that are resized; both are antialiased.
        resized: Whether boxes are resized; they have the view's size otherwise.
        bytes_between: Whether a resized box is rounded to 8 bits, as image libraries do, and colours change at once.
        coloured: Whether colours are changed.
        mean: Of each channel, images being in 0 to 1, (C, 1, 1).
        std: Likewise.
    """

    size: tuple[int, int, int]
    mode: str
    resized: bool
    bytes_between: bool
    coloured: bool
    mean: Tensor
    std: Tensor

    def render(self, sources: Sequence[Tensor], recipes: Recipes) -> Tensor:
        """Return views as float32 (B, C, H, W), normalised.

        Args:
            sources: All images that recipes may name, uint8 (C, h, w).
            recipes: What the views show, B of them.
        """
        count, pixels = len(recipes.weights), math.prod(self.size[1:])
        views = torch.empty(count, *self.size)
        together = max(1, PIXELS // pixels)

        def fill(start: int) -> None:
            rows = slice(start, start + together)
            self._fill(views[rows], sources, recipes[rows])

        share_out(fill, range(0, count, together), alone=pixels < WORTH_A_THREAD)
        return views

    def _fill(self, views: Tensor, sources: Sequence[Tensor], recipes: Recipes) -> None:
        self._show(views, sources, recipes.first)
        mixed = np.flatnonzero(recipes.mixed)
        if len(mixed):
            others = torch.empty(len(mixed), *self.size)
            self._show(others, sources, recipes.second[mixed])
            self._mix(views, others, recipes, mixed)
        views.sub_(self.mean).div_(self.std)

    @staticmethod
    def _mix(views: Tensor, others: Tensor, recipes: Recipes, mixed: NDArray[np.intp]) -> None:
        one = np.float32(1)
        for other, row in zip(others, mixed.tolist(), strict=True):
            if recipes.mixup[row]:
                weight = recipes.weights[row]
                views[row].mul_(float(weight)).add_(other.mul_(float(one - weight)))
            else:
                top, bottom, left, right = recipes.cuts[row].tolist()
                views[row, :, top:bottom, left:right] = other[:, top:bottom, left:right]

    def _show(self, views: Tensor, sources: Sequence[Tensor], shown: Ingredients) -> None:
        """Fill (B, C, H, W) with one image a row, in 0 to 1."""
        rows = zip(views, shown.images.tolist(), shown.boxes.tolist(), shown.mirrored.tolist(), strict=True)
        for view, image, box, mirrored in rows:
            crop = (self._resized if self.resized else self._shifted)(sources[image], *box)
            view.copy_(crop.flip(-1) if mirrored else crop)
        if self.resized and not self.bytes_between:
            views.clamp_(0, 255)  # bicubic overshoots
        self.finish(views, torch.from_numpy(shown.colours))

    def finish(self, views: Tensor, colours: Tensor) -> None:
        """Bring (B, C, H, W) from levels 0 to 255 to 0 to 1, in place, in colours that are scaled by (B, 3) factors."""
        if self.coloured and self.bytes_between:
            jitter_at_once(views, colours)
            return
        views.div_(255)
        if self.coloured:
            jitter(views, colours)

    def _resized(self, source: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        box = source[None, :, top : top + height, left : left + width]
        box = box.contiguous(memory_format=torch.channels_last) if self.bytes_between else box.float()
        resized = F.interpolate(box, self.size[1:], mode=self.mode, align_corners=False, antialias=True)
        return resized[0]

    @staticmethod
    def _shifted(source: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        if top or left:
            pad = max(abs(top), abs(left))
            source, top, left = F.pad(source, (pad, pad, pad, pad)), top + pad, left + pad
        return source[:, top : top + height, left : left + width]


def jitter(views: Tensor, factors: Tensor) -> None:
    """Scale brightness, contrast and saturation, in this order, of (B, C, H, W) in 0 to 1, in place, by (B, 3)."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    views.mul_(brightness).clamp_(0, 1)
    # the sum over integers is the same in any order, so it can't depend on how a batch is reduced
    scale = 2**20
    total = (grey(views) * scale).int().sum((1, 2, 3), keepdim=True)
    exact = torch.float32 if views.device.type == "mps" else torch.float64  # there is no other on MPS
    level = (total.to(exact) / (scale * views[0, 0].numel())).to(views.dtype)
    views.mul_(contrast).add_(level * (1 - contrast)).clamp_(0, 1)
    if views.shape[1] == 3:
        luma = grey(views).mul_(1 - saturation)
        views.mul_(saturation).add_(luma).clamp_(0, 1)


def jitter_at_once(views: Tensor, factors: Tensor) -> None:
    """Bring whole levels 0 to 255 (B, C, H, W) to 0 to 1, in place, with the factors of :func:`jitter`, clipped once.

    Without clipping in between, the three changes are ``b c s x + b c (1 - s) luma(x) + b (1 - c) mean(luma(x))``.
    """
    pixels = views[0, 0].numel()
    # whole numbers below 2^24 add up exactly in any order
    exact = torch.float32 if pixels * 255 < 2**24 or views.device.type == "mps" else torch.float64
    sums = views.sum((2, 3), keepdim=True, dtype=exact)
    mean = (grey(sums) / pixels).to(views.dtype)
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    scale = brightness * contrast / 255
    level = mean * (brightness * (1 - contrast) / 255)
    if views.shape[1] == 3:
        level = grey(views).mul_(scale * (1 - saturation)).add_(level)
        scale = scale * saturation
    views.mul_(scale).add_(level).clamp_(0, 1)


def grey(views: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of grey or RGB images (B, C, H, W)."""
    if views.shape[1] == 1:
        return views
    red, green, blue = views.unbind(1)
    return (red * GREY[0]).add_(green * GREY[1]).add_(blue * GREY[2])[:, None]
