"""Digits as PNG files in folders that are called by words, which sort in another order than the digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from netgraft.data.sources import open_data
from netgraft.models.creation import describe_labels
from netgraft.models.loading import load_teacher
from netgraft.models.students import save_student
from netgraft.zoo import DIGITS_MEAN, DIGITS_STD

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digits(folder: Path, names: Mapping[int, str], *, each: int = 12, test: bool = True) -> Path:
    """Write so many scans of each digit, in a folder of its name; those of the test set, or of the training set."""
    source = open_data("digits")
    images = source.test if test else source.train
    assert images is not None
    assert images.labels is not None
    left = dict.fromkeys(names, each)
    for number, digit in enumerate(images.labels):
        if left.get(digit, 0):
            left[digit] -= 1
            path = folder / names[digit] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.load(number).save(path)
    assert not any(left.values())
    return folder


def save_teacher(folder: Path, names: Sequence[str] | None = WORDS) -> Path:
    """Save the digits' teacher in a folder, with names for its classes."""
    teacher = load_teacher("digits_vgg7_bn")
    describe_labels(teacher, {} if names is None else {"label_names": list(names)})
    config: Mapping[str, Any] = vars(teacher)["pretrained_cfg"]
    save_student(folder, teacher, teacher, cuts=(), data_config=config)
    return folder


@torch.no_grad()
def counted(model: nn.Module, folder: Path, digits: Mapping[str, int]) -> float:
    """Return the top-1 in percent of files in folders, each of which shows a digit: one by one, without the package."""
    right = total = 0
    for path in sorted(folder.rglob("*.png")):
        pixels = torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255)
        logits = model.eval()(((pixels - DIGITS_MEAN[0]) / DIGITS_STD[0])[None, None])
        right += int(logits.argmax()) == digits[path.parent.name]
        total += 1
    return 100 * right / total
