"""A teacher's predictions may be kept, and are never another teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from netgraft.data.image_set import ImageSet
from netgraft.data.sources import open_data
from netgraft.evaluation.comparison import cached_predictions, predictions
from netgraft.progress import SilentReporter

T = TypeVar("T")


class Counting(SilentReporter):
    def __init__(self) -> None:
        self.passes = 0

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        self.passes += 1
        yield from items


@pytest.fixture
def images() -> ImageSet:
    test = open_data("digits").test
    assert test is not None
    return test


def test_predictions_are_kept_for_the_same_model_and_images_alone(tmp_path: Path, images: ImageSet) -> None:
    model = timm.create_model("digits_vgg7_bn_half").eval()
    config = resolve_model_data_config(model)
    reporter = Counting()
    logits, labels = predictions(model, images, config, SilentReporter())

    def kept(test: ImageSet = images) -> None:
        found, classes = cached_predictions(tmp_path, model, test, config, reporter, "evaluating")
        assert torch.equal(found, logits)
        assert torch.equal(classes, labels)

    kept()
    kept()
    assert reporter.passes == 1
    # a file cut short is computed again
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    kept()
    assert reporter.passes == 2
    # other labels, other pixels, other preprocessing, another model
    assert images.labels is not None
    shifted = replace(images, labels=(*images.labels[1:], images.labels[0]))
    cached_predictions(tmp_path, model, shifted, config, reporter, "evaluating")
    other = replace(images, store=open_data("digits").train.store)
    cached_predictions(tmp_path, model, other, config, reporter, "evaluating")
    cached_predictions(tmp_path, model, images, {**config, "mean": (0.4,)}, reporter, "evaluating")
    assert reporter.passes == 5
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    changed, _ = cached_predictions(tmp_path, model, images, config, reporter, "evaluating")
    assert reporter.passes == 6
    assert torch.equal(changed, predictions(model, images, config, SilentReporter())[0])
    assert not torch.equal(changed, logits)
