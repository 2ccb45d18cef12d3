"""Teacher and student side by side, on the same test images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from netgraft.data.image_set import ImageSet
from netgraft.data.loader import eval_loader
from netgraft.errors import RequestError
from netgraft.evaluation.metrics import agreement, latency, macs, predict, top1
from netgraft.files import write_atomically
from netgraft.models.creation import class_count
from netgraft.modules import parameters, state_digest
from netgraft.progress import ProgressReporter

LATENCY_BATCHES = {1: 20, 64: 5}
"""Batch size -> forwards, of which the median is taken."""


KNOWN_BY = 32
"""Test images whose pixels tell one data set from another."""


def check_classes(model: nn.Module, name: str, images: ImageSet | None) -> None:
    """Make sure that the model answers with as many classes as the images have.

    Raises:
        RequestError: It doesn't.
    """
    if images is not None and images.classes is not None and class_count(model) != images.classes:
        raise RequestError(
            f"{name} answers with {class_count(model)} classes but {images.name} has {images.classes}; "
            "give a model trained for these classes"
        )


def predictions(
    model: nn.Module,
    images: ImageSet,
    data_config: Mapping[str, Any],
    reporter: ProgressReporter,
    what: str = "evaluating",
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) in float32 and labels (N,)."""
    loader = eval_loader(images, data_config)

    def batches() -> Iterator[Any]:
        yield from reporter.track(loader, total=len(loader), name=what)

    return predict(model, batches())


def cached_predictions(
    folder: Path,
    model: nn.Module,
    images: ImageSet,
    data_config: Mapping[str, Any],
    reporter: ProgressReporter,
    what: str,
) -> tuple[Tensor, Tensor]:
    """:func:`predictions`, read from a file in ``folder`` where this model has answered these images there before.

    A file is known by the model's weights, the preprocessing, the device, the name, number and labels of the images
    and the pixels of a few of them.
    """
    digest = hashlib.sha256(state_digest(model).encode())
    device = next(model.parameters()).device.type
    digest.update(repr((sorted(data_config.items()), device, images.name, len(images), images.labels)).encode())
    sample = range(0, len(images), max(1, len(images) // KNOWN_BY))
    for image in images.load_many(sample):
        digest.update(image.tobytes())
    path = folder / f"{digest.hexdigest()[:32]}.safetensors"
    if path.exists():
        with suppress(SafetensorError, KeyError, OSError):  # damaged: computed again
            tensors = load_file(path)
            reporter.note(f"{what}: kept in {path}")
            return tensors["logits"], tensors["labels"]
    logits, labels = predictions(model, images, data_config, reporter, what)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"logits": logits.contiguous(), "labels": labels.contiguous()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    return logits, labels


def compare(
    teacher: nn.Module,
    student: nn.Module,
    test: ImageSet | None,
    data_config: Mapping[str, Any],
    reporter: ProgressReporter,
    *,
    ensemble: nn.Module | None = None,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Teacher and student side by side: accuracy in percent, sizes, milliseconds a batch.

    Accuracies are None without labelled test images. Of an ensemble, accuracy and size alone. The teacher's answers
    are kept in the folder ``kept``, if one is given.
    """
    size = tuple(data_config["input_size"])
    row: dict[str, Any] = {"teacher_top1": None, "student_top1": None, "gap": None, "agreement": None}
    if test is not None and test.labels is not None:
        asked = predictions if kept is None else partial(cached_predictions, kept)
        theirs, labels = asked(teacher, test, data_config, reporter, "evaluating the teacher")
        mine, _ = predictions(student, test, data_config, reporter, "evaluating the student")
        row["teacher_top1"] = round(top1(theirs, labels), 4)
        row["student_top1"] = round(top1(mine, labels), 4)
        row["gap"] = round(row["teacher_top1"] - row["student_top1"], 4)
        row["agreement"] = round(agreement(mine, theirs), 4)
        row["test_images"] = len(test)
        if ensemble is not None:
            common, _ = predictions(ensemble, test, data_config, reporter, "evaluating the ensemble")
            row["ensemble_top1"] = round(top1(common, labels), 4)
            row["ensemble_parameters"] = parameters(ensemble)
    for prefix, model in (("teacher_", teacher), ("", student)):
        row[f"{prefix}parameters"] = parameters(model)
        row[f"{prefix}macs"] = macs(model, size)
        for batch, repeats in LATENCY_BATCHES.items():
            row[f"{prefix}latency_ms_{batch}"] = round(latency(model, size, batch, repeats=repeats), 3)
    return row
