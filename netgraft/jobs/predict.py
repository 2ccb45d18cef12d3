"""``netgraft predict``: what a classifier makes of photographs, by the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import resolve_model_data_config

from netgraft.data.sources import open_all
from netgraft.evaluation.class_matching import answer_names
from netgraft.evaluation.comparison import predictions
from netgraft.models.loading import load_teacher
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.splitting.split import logits_of
from netgraft.training.runner import Runner


@dataclass(frozen=True)
class Prediction:
    """A model's answer to a photograph.

    Attributes:
        image: Name of the file, relative to the folder.
        classes: The most probable ones, the first one first.
        confidences: Their probabilities, by the softmax of the logits.
    """

    image: str
    classes: tuple[str, ...]
    confidences: tuple[float, ...]


def predict(
    model: str,
    images: str | Path,
    *,
    top: int = 1,
    weights: Path | None = None,
    image_size: int | None = None,
    skip_broken: bool = False,
    accelerator: str = "auto",
    reporter: ProgressReporter | None = None,
) -> Sequence[Prediction]:
    """Answer all images in a folder and below, or in a tar archive, whatever folders they lie in.

    Args:
        model: A run's folder, a student's or a model's, or a timm classifier.
        images: Path of the folder or archive.
        top: How many classes an image; all if there are fewer.
        weights: For a timm classifier, if not its own.
        image_size: Height and width of what a timm classifier takes; its own by default.
        skip_broken: Read every file once at first, and leave out those that hold no image.
        accelerator: Where it runs.
        reporter: Told what happens, and what was left out.

    Returns:
        In the order of the names.

    Raises:
        RequestError: No such model, folder, image or device; an image is broken.
    """
    reporter = reporter or SilentReporter()
    source = open_all(images, skip_broken=skip_broken)
    for remark in source.remarks:
        reporter.note(remark)
    network = load_teacher(model, weights=weights, image_size=image_size)
    config = resolve_model_data_config(network)
    logits_of(network, torch.zeros(1, *config["input_size"]))
    network.to(Runner(accelerator=accelerator).fabric.device)
    logits, _ = predictions(network, source.train, config, reporter, "reading and answering images")
    names = answer_names(network)
    best = logits.softmax(1).topk(min(top, logits.shape[1]))
    files = source.train.names
    assert files is not None
    return [
        Prediction(image, tuple(names[each] for each in classes), tuple(confidences))
        for image, classes, confidences in zip(files, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
