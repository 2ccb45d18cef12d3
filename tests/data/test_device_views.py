"""Views rendered by batched matrix products: those that torch's own resampling makes one by one, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from netgraft.data.device_views import DeviceViews, PackedImages, resampling_matrices
from netgraft.data.view_policy import VIEW_POLICIES, ViewPolicy
from netgraft.data.views import Views

CPU = torch.device("cpu")


def noise(count: int, sizes: tuple[tuple[int, int], ...]) -> list[Image.Image]:
    generator = np.random.default_rng(count)
    shapes = [(*sizes[number % len(sizes)], 3) for number in range(count)]
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def make(policy: ViewPolicy, channels: int = 3, mode: str = "bicubic", **changes: Any) -> Views:
    images = noise(9, ((40, 50), (21, 33), (64, 20), (5, 5)))
    settings = {"mean": (0.49, 0.48, 0.45)[:channels], "std": (0.25, 0.24, 0.26)[:channels], "crop_pct": 1.0, "seed": 3}
    return Views(images, policy, size=(channels, 20, 24), interpolation=mode, **{**settings, **changes})


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("out", [1, 7, 32])
def test_matrices_resample_as_torch_does(mode: str, out: int) -> None:
    lengths = [1, 2, 6, 7, 8, 31, 32, 33, 75, 200]
    matrices = resampling_matrices(torch.tensor(lengths), max(lengths) + 3, out, mode, torch.float64)
    generator = torch.Generator().manual_seed(0)
    for length, matrix in zip(lengths, matrices, strict=True):
        line = torch.rand(1, 1, 1, length, dtype=torch.float64, generator=generator)
        expected = F.interpolate(line, (1, out), mode=mode, align_corners=False, antialias=True)
        assert (matrix[:, :length] @ line.flatten() - expected.flatten()).abs().max() < 1e-12
        assert not matrix[:, length:].any()


def test_boxes_of_packed_images_are_those_of_each() -> None:
    images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in noise(3, ((6, 4), (3, 9)))]
    packed = PackedImages.of(images, CPU)
    for number, image in enumerate(images):
        for top, left in ((0, 0), (2, 1), (-2, -3), (1, 3)):
            [box] = packed.boxes(torch.tensor([number]), torch.tensor([[top, left]]), (4, 5), torch.float64)
            padded = F.pad(image, (9, 9, 9, 9))[:, top + 9 : top + 13, left + 9 : left + 14]
            assert torch.equal(box.permute(2, 0, 1), padded.double())


@pytest.mark.parametrize("name", VIEW_POLICIES)
@pytest.mark.parametrize(("channels", "mode"), [(3, "bicubic"), (1, "bilinear")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_equal_those_of_the_processor(name: str, channels: int, mode: str, dtype: torch.dtype) -> None:
    views = make(VIEW_POLICIES[name], channels, mode)
    count = 9 if name == "plain" else 90
    expected, found = views.batch(range(count)), DeviceViews(views, CPU, dtype).batch(range(count))
    assert found.shape == expected.shape
    assert found.dtype == dtype
    levels = (found - expected).abs() * torch.tensor((0.25, 0.24, 0.26)[:channels]).view(-1, 1, 1) * 255
    # 8 bits are rounded from weights in fixed point: a value between two levels may become the other, and be
    # stretched by up to 1.4 three times
    assert levels.max() < (2 * 1.4**3 if name == "rich-endless" else 1e-3)
    assert levels.mean() < (0.05 if name == "rich-endless" else 1e-4)


def test_batches_and_images_made_again_change_no_view(monkeypatch: pytest.MonkeyPatch) -> None:
    views, again = make(VIEW_POLICIES["rich"]), make(VIEW_POLICIES["rich"], held_bytes=0)
    assert again.sources.held == 0
    whole = DeviceViews(views, CPU, torch.float64).batch(range(40))
    assert torch.allclose(DeviceViews(again, CPU, torch.float64).batch(range(40)), whole, atol=1e-12)
    monkeypatch.setattr("netgraft.data.device_views.BOX_PIXELS", 5000)  # two boxes at a time
    assert torch.allclose(DeviceViews(views, CPU, torch.float64).batch(range(40)), whole, atol=1e-12)
    assert DeviceViews(views, CPU).batch([]).shape == (0, 3, 20, 24)


def test_numbers_are_those_of_the_views() -> None:
    views = make(VIEW_POLICIES["crop"])
    on_device = DeviceViews(views, CPU)
    assert (len(on_device), on_device.size) == (len(views), (3, 20, 24))
    with pytest.raises(IndexError, match="numbered from 0"):
        on_device.batch([len(views)])
