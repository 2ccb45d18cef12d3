"""Batches of images as timm's own evaluation prepares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from netgraft.data.image_modes import to_8_bits
from netgraft.data.image_set import ImageSet, image_mode


class EvalDataset(Dataset[tuple[Tensor, int]]):
    """Images as timm's own evaluation prepares them: (C, H, W) float32, normalised, and the label or -1.

    Args:
        images: Of any mode; converted to what the model takes.
        data_config: The model's own, as ``timm.data.resolve_data_config`` gives it.

    Raises:
        RequestError: The model takes images of other than 1 or 3 channels, or its data config doesn't fit them.
    """

    def __init__(self, images: ImageSet, data_config: Mapping[str, Any]) -> None:
        from timm.data import create_transform

        self._images = images
        self._mode = image_mode(data_config["input_size"][0], data_config["mean"], data_config["std"])
        self._transform = create_transform(**data_config, is_training=False)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return several at once: the loader asks for a batch this way."""
        labels = self._images.labels
        return [
            (
                self._transform(to_8_bits(image, self._images.name).convert(self._mode)),
                -1 if labels is None else labels[index],
            )
            for index, image in zip(indices, self._images.load_many(indices), strict=True)
        ]


def eval_loader(
    images: ImageSet, data_config: Mapping[str, Any], batch_size: int = 256, workers: int = 0
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of batches in order, as timm's own evaluation prepares them.

    Args:
        images: Of any mode.
        data_config: The model's own, as ``timm.data.resolve_data_config`` gives it.
        batch_size: B; the last batch may be smaller.
        workers: Processes that decode; 0 for none besides this one.

    Returns:
        Batches of images (B, C, H, W), float32, normalised, and labels (B,), -1 where there is none.

    Raises:
        RequestError: The model takes images of other than 1 or 3 channels, or its data config doesn't fit them.
    """
    dataset: Dataset[Any] = EvalDataset(images, data_config)
    return DataLoader(dataset, batch_size, num_workers=workers, pin_memory=torch.cuda.is_available())
