"""Somebody has a network of their own, in a class that no library knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import netgraft
from tests.support.digit_words import WORDS, write_digits


class OwnNet(nn.Module):
    """A network that answers as Hugging Face's do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(images).mean((2, 3)))}


def trained(width: int) -> OwnNet:
    """Train on the digits' training images, with values from 0 to 1, without the package."""
    torch.manual_seed(0)
    model, source = OwnNet(width), netgraft.open_data("digits").train
    assert source.labels is not None
    pixels = np.stack([np.asarray(image) for image in source.load_many(range(len(source)))])
    images, labels = torch.from_numpy(pixels)[:, None] / 255, torch.tensor(source.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(8):
        for few in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[few])["logits"], labels[few]).backward()
            optimizer.step()
    return model.eval()


def test_from_an_own_network_to_a_smaller_one_that_opens_again(tmp_path: Path) -> None:
    teacher = trained(32)
    folder = write_digits(tmp_path / "photos", dict.fromkeys(range(10), "."), each=5, test=False)
    result = netgraft.distill(teacher, OwnNet(16), folder, steps=100, views="plain", precision="32", progress=False)
    assert any("load_student" in note for note in result.notes)
    assert "student" in str(result)

    test = netgraft.open_data("digits").test
    assert test is not None
    assert test.labels is not None
    images, labels = test.load_many(range(100)), test.labels[:100]
    answers = [answer.label for answer in result.predict(images)]
    assert sum(answer == label for answer, label in zip(answers, labels, strict=True)) >= 75

    result.save(tmp_path / "student")
    again = netgraft.load_student(tmp_path / "student", model=OwnNet(16))
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))[:, None] / 255
    with torch.no_grad():
        assert again(pixels).argmax(1).tolist() == answers
    assert len(WORDS) == again(pixels[:1]).shape[1]
