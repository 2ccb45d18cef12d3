"""Small images in large batches, large ones in small batches; never none at all."""

from __future__ import annotations

import pytest
import torch

from netgraft.batch_size import images_at_once


@pytest.mark.parametrize(("side", "on_cpu"), [(8, 64), (32, 64), (96, 64), (128, 32), (224, 16), (256, 8), (384, 4)])
def test_a_processor_takes_as_many_pixels_of_any_size(side: int, on_cpu: int) -> None:
    assert images_at_once((3, side, side), torch.device("cpu")) == on_cpu


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_an_image_of_any_size_is_run(device: str) -> None:
    assert images_at_once((3, 10_000, 10_000), torch.device(device)) == 1


def test_an_accelerator_takes_more() -> None:
    assert images_at_once((3, 224, 224), torch.device("cuda")) == 128
    assert images_at_once((3, 32, 32), torch.device("cuda")) == 256
