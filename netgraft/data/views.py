"""The training images: an enumerated, seeded set of views of the few images.

A view is a pure function of the images, the policy, the seed and its number. Its random numbers come from a
counter-based hash of (seed, number, slot), so no generator has a state, and what is frozen can be cached by number.
What it shows is drawn in ``view_recipes.py``; its pixels are computed in ``rendering.py``.
"""

from __future__ import annotations

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
from torchvision.transforms.functional import pil_to_tensor

from netgraft.data.held_sources import HELD_BYTES, HeldSources
from netgraft.data.image_modes import to_8_bits
from netgraft.data.image_set import image_mode
from netgraft.data.rendering import Rendering
from netgraft.data.view_policy import ViewPolicy
from netgraft.data.view_recipes import ASPECT, Recipes, draw

NUMBERS = 2**53
"""Views that there are numbers for where there is no end of them."""


class Views:
    """Views of a few images: number ``k`` shows image ``k % n``, and there are ``n * per_image``, or no end of them.

    A view without a random resized crop starts from timm's evaluation image. One with such a crop starts from the
    whole image, kept so large that the smallest box, at its most stretched, still has the input's pixels: a larger
    copy would add nothing but memory.

    Args:
        images: PIL images of any mode and size.
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
        held_bytes: How many bytes of images are held; others are asked of ``images`` again. No view depends on it.

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
        held_bytes: int = HELD_BYTES,
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
        self.per_image = None if policy.pool is None else max(1, math.ceil(policy.pool / len(images)))
        self.rendering = Rendering(
            size=size,
            mode="bilinear" if interpolation == "bilinear" else "bicubic",
            resized=policy.crop_scale is not None,
            bytes_between=policy.arithmetic == "8-bit",
            coloured=policy.colour > 0,
            mean=torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1),
            std=torch.tensor(std, dtype=torch.float32).view(-1, 1, 1),
        )
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.long)
        self._images: Sequence[Image.Image] = images
        self._interpolation = interpolation
        self._mode = mode
        self._evaluation: Any = None
        if policy.crop_scale is None:
            self._evaluation = create_transform(
                (channels, height, width),
                is_training=False,
                interpolation=interpolation,
                crop_pct=crop_pct,
                crop_mode=crop_mode,
                normalize=False,
            )
        self.sources = HeldSources(len(images), self._source, held_bytes)
        if self.sources.all_held:
            self._images = ()

    def _source(self, number: int) -> Tensor:
        """Return what views of an image start from, uint8 (C, h, w)."""
        image = to_8_bits(self._images[number], f"image {number}").convert(self._mode)
        if self.policy.crop_scale is None:
            source: Tensor = self._evaluation(image)
            return source
        shorter = math.ceil(max(self.size[1:]) / math.sqrt(self.policy.crop_scale[0] * ASPECT[0]))
        return pil_to_tensor(_shrink(image, shorter, self._interpolation))

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
        return NUMBERS if self.per_image is None else len(self.sources) * self.per_image

    @property
    def images(self) -> int:
        """How many images they show."""
        return len(self.sources)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know: how many images are decoded again and again."""
        if self.sources.all_held:
            return ()
        return (
            f"{self.sources.held:,} of {self.images:,} images are held in memory; the others are decoded whenever a "
            "view needs them",
        )

    def identity(self) -> dict[str, Any]:
        """Return all that decides the views, as plain values: policy, preprocessing, seed, labels, pixels' SHA-256."""
        return {
            "policy": self.policy,
            "size": self.size,
            "mean": self.rendering.mean.flatten().tolist(),
            "std": self.rendering.std.flatten().tolist(),
            "interpolation": self.rendering.mode,
            "seed": self.seed,
            "per_image": self.per_image,
            "labels": None if self._labels is None else self._labels.tolist(),
            "pixels": self.sources.digest,
        }

    def labels(self, indices: Sequence[int] | Tensor) -> Tensor | None:
        """Return the class (B,) of the image that each view shows; None where there are no labels.

        Raises:
            IndexError: There is no view of that number.
        """
        if self._labels is None:
            return None
        return self._labels[torch.from_numpy(self._numbers(indices) % len(self.sources))]

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return views, computed when they are asked for, whatever the batch that they are in.

        Args:
            indices: Numbers of the views, (B,).

        Returns:
            float32 (B, C, H, W), normalised.

        Raises:
            IndexError: There is no view of that number.
        """
        return self.rendering.render(self.sources, self.recipes(indices))

    def ahead(self, indices: Sequence[int] | Tensor) -> None:
        """Begin to decode the images of views that will be asked for next, where they aren't held.

        Args:
            indices: Numbers of the views, (B,).
        """
        if not self.sources.all_held:
            recipes = self.recipes(indices)
            seen = np.concatenate([recipes.first.images, recipes.second.images[recipes.mixed]])
            self.sources.ahead(np.unique(seen).tolist())

    def recipes(self, indices: Sequence[int] | Tensor) -> Recipes:
        """Return what views show.

        Args:
            indices: Numbers of the views, (B,).

        Raises:
            IndexError: There is no view of that number.
        """
        return draw(self.policy, self.seed, self._numbers(indices), self.sources.extents, self.size[1:])

    def _numbers(self, indices: Sequence[int] | Tensor) -> NDArray[np.int64]:
        if isinstance(indices, Tensor):
            indices = indices.cpu()
        numbers = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"views are numbered from 0 to {len(self) - 1}, got {numbers.min()} to {numbers.max()}")
        return numbers


def _shrink(image: Image.Image, shorter: int, interpolation: str) -> Image.Image:
    scale = shorter / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(shorter, round(extent * scale)) for extent in image.size)
    return image.resize((width, height), str_to_pil_interp(interpolation))
