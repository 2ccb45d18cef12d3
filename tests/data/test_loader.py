"""Batches for evaluation against timm's own transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from netgraft.data.loader import eval_loader
from netgraft.data.sources import open_data
from netgraft.errors import RequestError
from tests.support.image_data import CONFIG, content


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1", "RGBA"])
def test_images_keep_their_mode_and_the_loader_converts(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(content(255, mode=mode))
    images = open_data(str(tmp_path)).train
    assert images.load(0).mode == mode
    [(batch, _)] = eval_loader(images, CONFIG)
    expected = (1 - torch.tensor(CONFIG["mean"])) / torch.tensor(CONFIG["std"])
    assert torch.allclose(batch, expected.view(1, 3, 1, 1).expand(1, 3, 32, 32), atol=1e-5)
    grey = {**CONFIG, "input_size": (1, 32, 32), "mean": (0.0,), "std": (1.0,)}
    [(batch, _)] = eval_loader(images, grey)
    assert torch.equal(batch, torch.ones(1, 1, 32, 32))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_timms_evaluation_images_in_order(tmp_path: Path, workers: int) -> None:
    generator = np.random.default_rng(0)
    originals = [generator.integers(0, 256, (40 + n, 50, 3), dtype=np.uint8) for n in range(5)]
    for number, pixels in enumerate(originals):
        folder = tmp_path / f"c{number // 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    batches = list(eval_loader(open_data(str(tmp_path)).train, CONFIG, batch_size=2, workers=workers))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    transform = create_transform(**CONFIG)
    expected = torch.stack([transform(Image.fromarray(pixels)) for pixels in originals])
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 1, 1, 2]


def test_data_config_of_other_channels_is_refused() -> None:
    with pytest.raises(RequestError, match="as channels, 1, got 3 and 3"):
        eval_loader(open_data("digits").train, {**CONFIG, "input_size": (1, 8, 8)})
