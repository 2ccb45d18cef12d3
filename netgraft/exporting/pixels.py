"""Images as a device has them, (N, H, W, C) of bytes, and what a model makes of them first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.data.image_modes import to_8_bits
from netgraft.data.image_set import image_mode


class FloatInput(nn.Module):
    """A model whose input is called ``images``: (N, C, H, W), float32, normalised.

    Args:
        model: Images to logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.model(images)


class PixelInput(nn.Module):
    """A model with its scaling and normalisation: images (N, H, W, C), uint8, at the size that it takes.

    Args:
        model: Normalised images to logits.
        mean: Of each channel, of pixels from 0 to 1.
        std: Of each channel, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K)."""
        scaled = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return self.model((scaled - self.mean) / self.std)


def normalised(pixels: Tensor, data_config: Mapping[str, Any]) -> Tensor:
    """Return pixels (N, H, W, C), uint8, as the model takes them: (N, C, H, W), float32."""
    mean, std = (torch.tensor(data_config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def pixels_of(images: Sequence[Image.Image], data_config: Mapping[str, Any]) -> Tensor:
    """Resize and crop photographs as timm's evaluation does.

    Args:
        images: Of any mode and size.
        data_config: The model's own, as ``timm.data.resolve_data_config`` gives it.

    Returns:
        (N, H, W, C), uint8.

    Raises:
        RequestError: The model takes images of other than 1 or 3 channels.
    """
    from timm.data import create_transform

    channels = data_config["input_size"][0]
    mode = image_mode(channels, data_config["mean"], data_config["std"])
    as_it_is = {**data_config, "mean": (0.0,) * channels, "std": (1.0,) * channels}
    transform = create_transform(**as_it_is, is_training=False)
    scaled = torch.stack([transform(to_8_bits(image, "the photographs").convert(mode)) for image in images])
    return (scaled * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def seeded_pixels(count: int, data_config: Mapping[str, Any], *, seed: int = 0) -> Tensor:
    """Make images up: soft blobs, edges and noise in equal parts.

    Args:
        count: N of them.
        data_config: Says the size.
        seed: The same one gives the same images.

    Returns:
        (N, H, W, C), uint8.
    """
    channels, height, width = data_config["input_size"]
    draws = np.random.default_rng(seed)

    def noise(*size: int) -> Tensor:
        return torch.from_numpy(draws.random((count, channels, *size), dtype=np.float32))

    blobs = F.interpolate(noise(4, 4), (height, width), mode="bicubic", align_corners=False)
    edges = F.interpolate(noise(5, 5), (height, width), mode="nearest")
    mixed = 0.5 * blobs + 0.3 * edges + 0.2 * noise(height, width)
    return (mixed.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
