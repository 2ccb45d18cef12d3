"""The training images: an enumerated, seeded set of views of the few images.

A view is a pure function of the images, the policy, the seed and its number. Its random numbers come from a
counter-based hash of (seed, number, slot), so no generator has a state, and what is frozen can be cached by number.
Each view is resampled by a call of its own, and sums are taken over integers, so a view doesn't depend on the
batch that it is computed in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from netgraft.data.counter_rng import uniform_numbers
from netgraft.data.image_modes import to_8_bits
from netgraft.data.image_set import image_mode
from netgraft.data.view_policy import ViewPolicy

# Crops, resizes and colours are torch's own calls: torchvision's v2 functions crop and resize to the same bits more
# slowly, one view at a time, and round colours in another way.

ASPECT = (3 / 4, 4 / 3)  # width over height of a random resized crop, as everywhere in the field

ATTEMPTS = 10  # boxes to try before one is clipped to the image

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma


# slots of a view's random numbers: the mix, then twice the geometry and colour of an ingredient
MIX_SLOTS = 5

FLIP, TOP, LEFT, COLOUR, BOXES = 0, 1, 2, 3, 6

INGREDIENT_SLOTS = BOXES + 2 * ATTEMPTS


class Views:
    """Views of a few images: number ``k`` shows image ``k % n``, and there are ``n * per_image``.

    A view without a random resized crop starts from timm's evaluation image. One with such a crop starts from the
    whole image, kept so large that the smallest box, at its most stretched, still has the input's pixels: a larger
    copy would add nothing but memory.

    Args:
        images: PIL images of any mode and size; converted once.
        policy: How the views are made.
        size: Channels, height and width of the model's input.
        mean: Of each channel, images being in 0 to 1.
        std: Of each channel.
        interpolation: The model's own. Random resized crops know ``bilinear`` and ``bicubic``, both antialiased,
            and take ``bicubic`` for any other.
        crop_pct: The model's own: the part of the resized image that its evaluation crops.
        seed: Of all views.
        labels: Class of each image.
        crop_mode: The model's own, one of timm's.

    Raises:
        ValueError: No images, labels together with a policy that mixes images, or another number of them.
        RequestError: The model takes images of other than 1 or 3 channels, ``mean`` or ``std`` is of other channels, or
            an image is in no mode that is known.
    """

    def __init__(
        self,
        images: Sequence[Image.Image],
        policy: ViewPolicy,
        *,
        size: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str,
        crop_pct: float,
        seed: int,
        labels: Sequence[int] | None = None,
        crop_mode: str = "center",
    ) -> None:
        if not images:
            raise ValueError("expected images to make views of, got no images; hand in at least one")
        if labels is not None and policy.mixes:
            raise ValueError(
                f"a view of policy {policy.name!r} may show two images, so it has no label; leave labels out"
            )
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"got {len(images)} images with {len(labels)} labels; give each image one")
        channels, height, width = size
        mode = image_mode(channels, mean, std)
        self.policy = policy
        self.size = size
        self.seed = seed
        self.per_image = max(1, math.ceil(policy.pool / len(images)))
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self._mode = "bilinear" if interpolation == "bilinear" else "bicubic"
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.long)
        upright = (to_8_bits(image, f"image {number}") for number, image in enumerate(images))
        if policy.crop_scale is None:
            evaluation = create_transform(
                (channels, height, width),
                is_training=False,
                interpolation=interpolation,
                crop_pct=crop_pct,
                crop_mode=crop_mode,
                normalize=False,
            )
            self._sources = [evaluation(image.convert(mode)) for image in upright]
        else:
            shorter = math.ceil(max(height, width) / math.sqrt(policy.crop_scale[0] * ASPECT[0]))
            self._sources = [pil_to_tensor(_shrink(image.convert(mode), shorter, interpolation)) for image in upright]
        self._extents = np.array([source.shape[1:] for source in self._sources], dtype=np.int64)

    @classmethod
    def configured(
        cls,
        images: Sequence[Image.Image],
        policy: ViewPolicy,
        data_config: Mapping[str, Any],
        *,
        seed: int,
        labels: Sequence[int] | None = None,
    ) -> Views:
        """Return views with a model's preprocessing.

        Args:
            images: PIL images of any mode and size.
            policy: How the views are made.
            data_config: The preprocessing, as ``timm.data.resolve_model_data_config`` gives it.
            seed: Of all views.
            labels: Class of each image.

        Raises:
            ValueError: As the class itself.
            RequestError: As the class itself.
        """
        return cls(
            images,
            policy,
            size=tuple(data_config["input_size"]),
            mean=data_config["mean"],
            std=data_config["std"],
            interpolation=data_config["interpolation"],
            crop_pct=data_config["crop_pct"],
            crop_mode=data_config.get("crop_mode", "center"),
            seed=seed,
            labels=labels,
        )

    @classmethod
    def of(
        cls,
        images: Sequence[Image.Image],
        how: ViewPolicy | Views,
        data_config: Mapping[str, Any],
        *,
        seed: int,
        labels: Sequence[int] | None = None,
    ) -> Views:
        """Return views that were made already, or make them by a policy; see :meth:`configured`."""
        return how if isinstance(how, Views) else cls.configured(images, how, data_config, seed=seed, labels=labels)

    def __len__(self) -> int:
        return len(self._sources) * self.per_image

    def identity(self) -> dict[str, Any]:
        """Return all that decides the views, as plain values: policy, preprocessing, seed, labels, pixels' SHA-256."""
        pixels = hashlib.sha256()
        for source in self._sources:
            pixels.update(f"{tuple(source.shape)} {source.dtype}\0".encode())
            pixels.update(source.contiguous().numpy().tobytes())
        return {
            "policy": self.policy,
            "size": self.size,
            "mean": self._mean.flatten().tolist(),
            "std": self._std.flatten().tolist(),
            "interpolation": self._mode,
            "seed": self.seed,
            "per_image": self.per_image,
            "labels": None if self._labels is None else self._labels.tolist(),
            "pixels": pixels.hexdigest(),
        }

    def labels(self, indices: Sequence[int] | Tensor) -> Tensor | None:
        """Return the class (B,) of the image that each view shows; None where there are no labels.

        Raises:
            IndexError: There is no view of that number.
        """
        if self._labels is None:
            return None
        return self._labels[torch.from_numpy(self._numbers(indices) % len(self._sources))]

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return views, computed when they are asked for, whatever the batch that they are in.

        Args:
            indices: Numbers of the views, (B,).

        Returns:
            float32 (B, C, H, W), normalised.

        Raises:
            IndexError: There is no view of that number.
        """
        numbers = self._numbers(indices)
        random = uniform_numbers(self.seed, numbers, MIX_SLOTS + 2 * INGREDIENT_SLOTS)
        mix, first, second = np.split(random, [MIX_SLOTS, MIX_SLOTS + INGREDIENT_SLOTS], axis=1)
        images = numbers % len(self._sources)
        views = self._ingredients(images, first)
        mixed = np.flatnonzero(mix[:, 0] < self.policy.mixup + self.policy.cutmix)
        if len(mixed):
            # any image but the own one; a single image is mixed with another view of itself
            step = 1 + (mix[mixed, 1] * (len(self._sources) - 1)).astype(np.int64)
            others = self._ingredients((images[mixed] + step) % len(self._sources), second[mixed])
            weight = self._weights(mix[mixed])
            rows = torch.from_numpy(mixed)
            views[rows] = views[rows] * weight + others * (1 - weight)
        return views.sub_(self._mean).div_(self._std)

    def _numbers(self, indices: Sequence[int] | Tensor) -> NDArray[np.int64]:
        if isinstance(indices, Tensor):
            indices = indices.cpu()
        numbers = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"views are numbered from 0 to {len(self) - 1}, got {numbers.min()} to {numbers.max()}")
        return numbers

    def _ingredients(self, images: NDArray[np.int64], random: NDArray[np.float64]) -> Tensor:
        """Crop, mirror and colour one image a row: (B, C, H, W) in 0 to 1."""
        cropped = self._resized_crops if self.policy.crop_scale is not None else self._shifted_crops
        views = cropped(images, random).div_(255)
        mirrored = torch.from_numpy(np.flatnonzero(random[:, FLIP] < self.policy.hflip))
        views[mirrored] = views[mirrored].flip(-1)
        if self.policy.colour:
            factors = 1 + self.policy.colour * (2 * random[:, COLOUR : COLOUR + 3] - 1)
            views = _jitter(views, torch.from_numpy(factors.astype(np.float32)))
        return views

    def _resized_crops(self, images: NDArray[np.int64], random: NDArray[np.float64]) -> Tensor:
        height, width = self.size[1:]
        views = torch.empty(len(images), *self.size)
        for row, (image, (top, left, h, w)) in enumerate(zip(images, self._boxes(images, random), strict=True)):
            box = self._sources[image][None, :, top : top + h, left : left + w].float()
            resized = F.interpolate(box, (height, width), mode=self._mode, align_corners=False, antialias=True)
            views[row] = resized[0]
        return views.clamp_(0, 255)  # bicubic overshoots

    def _shifted_crops(self, images: NDArray[np.int64], random: NDArray[np.float64]) -> Tensor:
        pad = self.policy.pad
        _, height, width = self.size
        offsets = (random[:, (TOP, LEFT)] * (2 * pad + 1)).astype(np.int64)
        views = torch.empty(len(images), *self.size)
        for row, (image, (top, left)) in enumerate(zip(images, offsets.tolist(), strict=True)):
            padded = F.pad(self._sources[image], (pad, pad, pad, pad)) if pad else self._sources[image]
            views[row] = padded[:, top : top + height, left : left + width]
        return views

    def _boxes(self, images: NDArray[np.int64], random: NDArray[np.float64]) -> list[list[int]]:
        """Draw a box (top, left, height, width) a row: uniform area, log-uniform aspect, uniform position."""
        assert self.policy.crop_scale is not None
        smallest, largest = self.policy.crop_scale
        extents = self._extents[images]
        heights, widths = extents[:, :1], extents[:, 1:]
        tries = random[:, BOXES:].reshape(len(images), ATTEMPTS, 2)
        area = (smallest + (largest - smallest) * tries[..., 0]) * heights * widths
        aspect = np.exp(np.log(ASPECT[0]) + (np.log(ASPECT[1]) - np.log(ASPECT[0])) * tries[..., 1])
        h = np.maximum(np.rint(np.sqrt(area / aspect)).astype(np.int64), 1)
        w = np.maximum(np.rint(np.sqrt(area * aspect)).astype(np.int64), 1)
        fits = (h <= heights) & (w <= widths)
        rows, taken = np.arange(len(images)), fits.argmax(axis=1)  # the first try where none fits
        h = np.minimum(h[rows, taken], extents[:, 0])
        w = np.minimum(w[rows, taken], extents[:, 1])
        top = (random[:, TOP] * (extents[:, 0] - h + 1)).astype(np.int64)
        left = (random[:, LEFT] * (extents[:, 1] - w + 1)).astype(np.int64)
        return np.stack([top, left, h, w], axis=1).tolist()

    def _weights(self, mix: NDArray[np.float64]) -> Tensor:
        """Weight (B, 1, H, W) of the first image: one number for mixup, 0 in the box of cutmix."""
        _, height, width = self.size
        weight = np.broadcast_to(mix[:, 2, None, None], (len(mix), height, width)).astype(np.float32)
        cut = mix[:, 0] >= self.policy.mixup
        side = np.sqrt(1 - mix[:, 2])
        half_h, half_w = (height * side).astype(np.int64) // 2, (width * side).astype(np.int64) // 2
        centre_y, centre_x = (mix[:, 3] * height).astype(np.int64), (mix[:, 4] * width).astype(np.int64)
        inside_y = _between(np.arange(height), centre_y - half_h, centre_y + half_h)
        inside_x = _between(np.arange(width), centre_x - half_w, centre_x + half_w)
        inside = inside_y[:, :, None] & inside_x[:, None, :]
        weight[cut] = (~inside[cut]).astype(np.float32)
        return torch.from_numpy(weight)[:, None]


def _shrink(image: Image.Image, shorter: int, interpolation: str) -> Image.Image:
    scale = shorter / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(shorter, round(extent * scale)) for extent in image.size)
    return image.resize((width, height), str_to_pil_interp(interpolation))


def _between(positions: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (low[:, None] <= positions) & (positions < high[:, None])


def _jitter(views: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation, in this order, of (B, C, H, W) in 0 to 1 by (B, 3) factors."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    views = (views * brightness).clamp_(0, 1)
    # the sum over integers is the same in any order, so it can't depend on how a batch is reduced
    scale = 2**20
    total = (_grey(views) * scale).long().sum((1, 2, 3), keepdim=True)
    level = (total.double() / (scale * views[0, 0].numel())).float()
    views = (views * contrast + level * (1 - contrast)).clamp_(0, 1)
    if views.shape[1] == 3:
        views = (views * saturation + _grey(views) * (1 - saturation)).clamp_(0, 1)
    return views


def _grey(views: Tensor) -> Tensor:
    if views.shape[1] == 1:
        return views
    red, green, blue = views.split(1, dim=1)
    return red * GREY[0] + green * GREY[1] + blue * GREY[2]
