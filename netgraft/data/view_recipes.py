"""What views show, as numbers: which boxes of which images, in which colours, mixed how. Drawn before any pixel is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netgraft.data.counter_rng import uniform_numbers
from netgraft.data.view_policy import ViewPolicy

ASPECT = (3 / 4, 4 / 3)  # width over height of a random resized crop, as everywhere in the field

ATTEMPTS = 10  # boxes to try before one is clipped to the image

# slots of a view's random numbers: the mix, then twice the geometry and colour of an ingredient
MIX_SLOTS = 5

FLIP, TOP, LEFT, COLOUR, BOXES = 0, 1, 2, 3, 6

INGREDIENT_SLOTS = BOXES + 2 * ATTEMPTS


@dataclass(frozen=True)
class Ingredients:
    """One image in each view.

    Attributes:
        images: Number of the image, (B,).
        boxes: Top, left, height and width of what is seen of it, (B, 4); behind its border there are zeros.
        mirrored: Whether left is right, (B,).
        colours: Factors of brightness, contrast and saturation, float32 (B, 3).
    """

    images: NDArray[np.int64]
    boxes: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    colours: NDArray[np.float32]

    def __getitem__(self, rows: slice | NDArray[Any]) -> Ingredients:
        """Return some of the views'."""
        return Ingredients(self.images[rows], self.boxes[rows], self.mirrored[rows], self.colours[rows])


@dataclass(frozen=True)
class Recipes:
    """What each of some views shows.

    Attributes:
        first: The image that the view is named after.
        second: The image that it may be mixed with.
        mixup: Whether it is a weighted mean of both, (B,).
        weights: The weight of the first image then, float32 (B,).
        cutmix: Whether a box of it shows the second image, (B,).
        cuts: Top, bottom, left and right of that box, (B, 4), within the view.
    """

    first: Ingredients
    second: Ingredients
    mixup: NDArray[np.bool_]
    weights: NDArray[np.float32]
    cutmix: NDArray[np.bool_]
    cuts: NDArray[np.int64]

    def __getitem__(self, rows: slice | NDArray[Any]) -> Recipes:
        """Return some of the views'."""
        return Recipes(
            self.first[rows],
            self.second[rows],
            self.mixup[rows],
            self.weights[rows],
            self.cutmix[rows],
            self.cuts[rows],
        )

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Whether the second image is seen, (B,)."""
        return self.mixup | self.cutmix


def draw(
    policy: ViewPolicy, seed: int, numbers: NDArray[np.int64], extents: NDArray[np.int64], size: tuple[int, int]
) -> Recipes:
    """Draw what the views with some numbers show.

    Args:
        policy: How views are made.
        seed: Of all views.
        numbers: Of the views, (B,).
        extents: Height and width of each image, (n, 2).
        size: Height and width of a view.
    """
    random = uniform_numbers(seed, numbers, MIX_SLOTS + 2 * INGREDIENT_SLOTS)
    mix, first, second = np.split(random, [MIX_SLOTS, MIX_SLOTS + INGREDIENT_SLOTS], axis=1)
    images = numbers % len(extents)
    # any image but the own one; a single image is mixed with another view of itself
    others = (images + 1 + (mix[:, 1] * (len(extents) - 1)).astype(np.int64)) % len(extents)
    kind = mix[:, 0]
    return Recipes(
        first=_ingredients(policy, images, first, extents, size),
        second=_ingredients(policy, others, second, extents, size),
        mixup=kind < policy.mixup,
        weights=mix[:, 2].astype(np.float32),
        cutmix=(kind >= policy.mixup) & (kind < policy.mixup + policy.cutmix),
        cuts=_cuts(mix, *size),
    )


def _ingredients(
    policy: ViewPolicy,
    images: NDArray[np.int64],
    random: NDArray[np.float64],
    extents: NDArray[np.int64],
    size: tuple[int, int],
) -> Ingredients:
    return Ingredients(
        images=images,
        boxes=_shifted_boxes(policy.pad, random, size)
        if policy.crop_scale is None
        else _resized_boxes(policy.crop_scale, random, extents[images]),
        mirrored=random[:, FLIP] < policy.hflip,
        colours=(1 + policy.colour * (2 * random[:, COLOUR : COLOUR + 3] - 1)).astype(np.float32),
    )


def _shifted_boxes(pad: int, random: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Shift the whole image by up to ``pad`` each way."""
    corners = (random[:, (TOP, LEFT)] * (2 * pad + 1)).astype(np.int64) - pad
    return np.concatenate([corners, np.broadcast_to(np.array(size, dtype=np.int64), corners.shape)], axis=1)


def _resized_boxes(
    crop_scale: tuple[float, float], random: NDArray[np.float64], extents: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw a box a row: uniform area, log-uniform aspect, uniform position."""
    smallest, largest = crop_scale
    heights, widths = extents[:, :1], extents[:, 1:]
    tries = random[:, BOXES:].reshape(len(random), ATTEMPTS, 2)
    area = (smallest + (largest - smallest) * tries[..., 0]) * heights * widths
    aspect = np.exp(np.log(ASPECT[0]) + (np.log(ASPECT[1]) - np.log(ASPECT[0])) * tries[..., 1])
    h = np.maximum(np.rint(np.sqrt(area / aspect)).astype(np.int64), 1)
    w = np.maximum(np.rint(np.sqrt(area * aspect)).astype(np.int64), 1)
    fits = (h <= heights) & (w <= widths)
    rows, taken = np.arange(len(random)), fits.argmax(axis=1)  # the first try where none fits
    h = np.minimum(h[rows, taken], extents[:, 0])
    w = np.minimum(w[rows, taken], extents[:, 1])
    top = (random[:, TOP] * (extents[:, 0] - h + 1)).astype(np.int64)
    left = (random[:, LEFT] * (extents[:, 1] - w + 1)).astype(np.int64)
    return np.stack([top, left, h, w], axis=1)


def _cuts(mix: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
    side = np.sqrt(1 - mix[:, 2])
    half_h, half_w = (height * side).astype(np.int64) // 2, (width * side).astype(np.int64) // 2
    centre_y, centre_x = (mix[:, 3] * height).astype(np.int64), (mix[:, 4] * width).astype(np.int64)
    top, bottom = np.maximum(centre_y - half_h, 0), np.minimum(centre_y + half_h, height)
    left, right = np.maximum(centre_x - half_w, 0), np.minimum(centre_x + half_w, width)
    return np.stack([top, bottom, left, right], axis=1)
