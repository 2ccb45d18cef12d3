"""Views a second: ours, in float and in 8 bits, against torchvision's v2 transforms image by image.

The transforms show the same kinds of views as the policy ``rich``: a random resized crop, mirrored, brightness,
contrast and saturation, a quarter mixup and a quarter cutmix of two such images, normalised.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.speed.timing import median, ratio, seconds, side_by_side, write
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.training.heap import keep_freed_memory

SIZES = {32: ((32, 32), 1.0, 256), 224: ((500, 375), 0.9, 16)}
"""Pixels of a view -> width and height of the images, crop_pct, views in a batch."""

IMAGES = 20

THREADS = (1, 2)

REPEATS = 3

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class ByTransforms:
    """The same kinds of views by torchvision's transforms, on tensors of bytes, one image after another."""

    def __init__(self, pictures: Sequence[Image.Image], size: int) -> None:
        self._pictures = pictures
        self._size = size
        colour = 0.4
        self._one = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(size, (0.25, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(colour, colour, colour),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        self._normalise = v2.Normalize(MEAN, STD)

    def batch(self, numbers: Sequence[int]) -> Tensor:
        """Return views, (B, C, H, W)."""
        views = []
        for number in numbers:
            view = self._show(number)
            kind, share = random.random(), random.random()  # nosec B311  # no secret
            if kind < 0.25:
                view = view * share + self._show(number + 1) * (1 - share)
            elif kind < 0.5:
                side = int(self._size * (1 - share) ** 0.5)
                top, left = (random.randint(0, self._size - side) for _ in range(2))  # nosec B311  # no secret
                box = slice(top, top + side), slice(left, left + side)
                view[:, *box] = self._show(number + 1)[:, *box]
            views.append(self._normalise(view))
        return torch.stack(views)

    def _show(self, number: int) -> Tensor:
        shown: Tensor = self._one(self._pictures[number % len(self._pictures)])
        return shown


def made(size: int) -> dict[str, Callable[[], Any]]:
    """Return what makes a batch of views of photographs of noise, by its name."""
    extent, crop_pct, count = SIZES[size]
    generator = np.random.default_rng(0)
    pictures = [
        Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(extent) for _ in range(IMAGES)
    ]
    found: dict[str, Callable[[], Any]] = {}
    for how in ("float", "8-bit"):
        policy = replace(VIEW_POLICIES["rich"], arithmetic=how)
        views = Views(
            pictures,
            policy,
            size=(3, size, size),
            mean=MEAN,
            std=STD,
            interpolation="bicubic",
            crop_pct=crop_pct,
            seed=0,
        )
        found[how] = partial(views.batch, range(count))
    transforms = ByTransforms(pictures, size)
    found["torchvision"] = partial(transforms.batch, range(count))
    return found


def _seconds_a_view(run: Callable[[], Any], count: int) -> float:
    return seconds(run) / count


def main() -> None:
    """Measure and write the result file."""
    keep_freed_memory()  # as the command does
    measured: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}
    targets: dict[str, float] = {}
    before = torch.get_num_threads()
    for size, (_, _, count) in SIZES.items():
        runs = made(size)
        for threads in THREADS:
            torch.set_num_threads(threads)
            where = f"{size} pixels, {threads} thread{'s' if threads > 1 else ''}"
            for run in runs.values():
                run()
            found = side_by_side({name: partial(_seconds_a_view, run, count) for name, run in runs.items()}, REPEATS)
            measured |= {f"{name}, {where}": values for name, values in found.items()}
            for how in ("float", "8-bit"):
                ratios[f"{how}, {where}"] = ratio(found, "torchvision", how)
                if how == "8-bit":
                    targets[f"{how}, {where}"] = 3
    torch.set_num_threads(before)
    write(
        "views",
        {
            "task": "policy rich, 20 images (32x32; 500x375), against torchvision.transforms.v2 image by image",
            "seconds a view": measured,
            "views a second": {name: round(1 / median(values), 1) for name, values in measured.items()},
            "ratios": ratios,
            "targets": targets,
        },
    )


if __name__ == "__main__":
    main()
