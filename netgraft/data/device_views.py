"""Views rendered on a device, a whole batch at once, equal to those of the processor up to rounding.

Antialiased resampling is separable and linear: a box becomes ``A_h X A_w^T`` with two banded matrices that follow from
its height and width, so boxes of all sizes are two batched matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netgraft.data.view_recipes import Ingredients, Recipes
from netgraft.data.views import Views

BOX_PIXELS = 2**23  # of the boxes that are resampled at a time: 100 MB in float32 with three channels

CUBIC = -0.5  # of Keys' kernel, where it is antialiased, as in Pillow and torch


def resampling_matrices(extents: Tensor, longest: int, out: int, mode: str, dtype: torch.dtype) -> Tensor:
    """Return the matrices that resample lines of some lengths to one length, antialiased.

    Args:
        extents: Length of each line, (B,), on the device of what is returned.
        longest: At least the largest of them.
        out: Length that they get.
        mode: ``bilinear`` or ``bicubic``.
        dtype: Of the matrices.

    Returns:
        (B, out, longest); rows sum to 1, and are zero behind a line's end.

    Source: ``torch.nn.functional.interpolate`` with ``antialias=True``, and Pillow's ``Image.resize``; the cubic kernel
    is Keys', "Cubic convolution interpolation for digital image processing", 1981.
    """
    lengths = extents.to(dtype)[:, None, None]
    scale = lengths / out
    centres = scale * (torch.arange(out, dtype=dtype, device=extents.device)[:, None] + 0.5)
    places = torch.arange(longest, dtype=dtype, device=extents.device)
    away = ((places + 0.5 - centres) / scale.clamp_min(1)).abs()
    weights = _linear(away) if mode == "bilinear" else _cubic(away)
    weights = weights * (places < lengths)
    return weights / weights.sum(-1, keepdim=True)


def _linear(away: Tensor) -> Tensor:
    return (1 - away).clamp_min(0)


def _cubic(away: Tensor) -> Tensor:
    near = ((CUBIC + 2) * away - (CUBIC + 3)) * away * away + 1
    far = (((away - 5) * away + 8) * away - 4) * CUBIC
    return torch.where(away < 1, near, far * (away < 2))


@dataclass(frozen=True)
class PackedImages:
    """Images of any sizes in one tensor.

    Attributes:
        pixels: uint8 (P, C), image after image, row after row.
        starts: Where each image begins, (n,).
        extents: Height and width of each image, (n, 2).
    """

    pixels: Tensor
    starts: Tensor
    extents: Tensor

    @classmethod
    def of(cls, images: Sequence[Tensor], device: torch.device) -> PackedImages:
        """Bring images, uint8 (C, h, w), to a device."""
        extents = torch.tensor([image.shape[1:] for image in images])
        counts = extents.prod(1)
        pixels = torch.cat([image.permute(1, 2, 0).flatten(0, 1) for image in images])
        return cls(pixels.to(device), (counts.cumsum(0) - counts).to(device), extents.to(device))

    def boxes(self, images: Tensor, corners: Tensor, extent: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return boxes of images, (B, h, w, C), zero behind the images' borders.

        Args:
            images: Their numbers, (B,).
            corners: Top and left of each box, (B, 2).
            extent: Height and width of all boxes.
            dtype: Of what is returned.
        """
        rows = corners[:, :1] + torch.arange(extent[0], device=corners.device)
        columns = corners[:, 1:] + torch.arange(extent[1], device=corners.device)
        high, wide = self.extents[images, :1], self.extents[images, 1:]
        inside = ((rows >= 0) & (rows < high))[:, :, None] & ((columns >= 0) & (columns < wide))[:, None]
        lines = self.starts[images, None] + rows.clamp_min(0).minimum(high - 1) * wide
        places = lines[:, :, None] + columns.clamp_min(0).minimum(wide - 1)[:, None]
        return self.pixels[places].to(dtype) * inside[..., None]


class DeviceViews:
    """The same views, rendered on a device.

    Args:
        views: What they show.
        device: Where they are rendered; images that are held in memory lie there too.
        dtype: Of the arithmetic, and of what is returned.
    """

    def __init__(self, views: Views, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._views, self._device, self._dtype = views, device, dtype
        self._mean, self._std = (values.to(device, dtype) for values in (views.rendering.mean, views.rendering.std))
        self._packed = PackedImages.of(views.sources, device) if views.sources.all_held else None

    @property
    def size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self._views.size

    def __len__(self) -> int:
        return len(self._views)

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return views as (B, C, H, W) on the device, normalised.

        Raises:
            IndexError: There is no view of that number.
        """
        recipes = self._views.recipes(indices)
        both = np.concatenate([recipes.first.boxes, recipes.second.boxes])
        together = max(1, BOX_PIXELS // int(both[:, 2:].prod(1).max(initial=1)))
        starts = range(0, len(recipes.weights), together)
        parts = [self._rendered(recipes[start : start + together]) for start in starts]
        return torch.cat(parts) if parts else torch.empty(0, *self.size, dtype=self._dtype, device=self._device)

    def _rendered(self, recipes: Recipes) -> Tensor:
        views = self._shown(recipes.first)
        mixed = np.flatnonzero(recipes.mixed)
        if len(mixed):
            rows = torch.from_numpy(mixed).to(self._device)
            weights = self._weights(recipes[mixed])
            views[rows] = views[rows] * weights + self._shown(recipes.second[mixed]) * (1 - weights)
        return views.sub_(self._mean).div_(self._std)

    def _weights(self, recipes: Recipes) -> Tensor:
        """Weight (B, 1, H, W) of the first image: one number for mixup, 0 in the box of cutmix."""
        top, bottom, left, right = self._at(recipes.cuts)[:, :, None].unbind(1)
        rows, columns = (torch.arange(side, device=self._device) for side in self.size[1:])
        inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
        outside = (~inside).to(self._dtype)
        shares = self._at(recipes.weights).to(self._dtype)[:, None, None]
        return torch.where(self._at(recipes.mixup)[:, None, None], shares, outside)[:, None]

    def _shown(self, shown: Ingredients) -> Tensor:
        """Return one image a row, (B, C, H, W) in 0 to 1."""
        rendering = self._views.rendering
        images, packed = shown.images, self._packed
        if packed is None:
            needed, images = np.unique(images, return_inverse=True)
            packed = PackedImages.of(self._views.sources.several(needed.tolist()), self._device)
        boxes = self._at(shown.boxes)
        high, wide = shown.boxes[:, 2:].max(axis=0).tolist()
        views = packed.boxes(self._at(images), boxes[:, :2], (high, wide), self._dtype).permute(0, 3, 1, 2)
        if rendering.resized:
            views = self._resized(views, boxes[:, 2], boxes[:, 3])
        views = torch.where(self._at(shown.mirrored)[:, None, None, None], views.flip(-1), views)
        rendering.finish(views, self._at(shown.colours).to(self._dtype))
        return views

    def _resized(self, boxes: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        """Resample (B, C, h, w), first along the rows, as torch does."""
        rendering = self._views.rendering
        _, height, width = rendering.size
        across = resampling_matrices(widths, boxes.shape[3], width, rendering.mode, self._dtype)
        down = resampling_matrices(heights, boxes.shape[2], height, rendering.mode, self._dtype)
        narrow = self._rounded(boxes @ across.mT[:, None])
        return self._rounded(down[:, None] @ narrow).clamp(0, 255)  # bicubic overshoots

    def _rounded(self, values: Tensor) -> Tensor:
        # halves go up, as in fixed point
        return values.add_(0.5).floor_().clamp_(0, 255) if self._views.rendering.bytes_between else values

    def _at(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
