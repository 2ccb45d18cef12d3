"""``netgraft evaluate``: any classifier on labelled images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config

from netgraft.data.sources import open_data
from netgraft.evaluation.class_matching import match_classes, read_class_map
from netgraft.evaluation.comparison import chance_warning, predictions
from netgraft.evaluation.metrics import macs, top1
from netgraft.models.creation import class_count
from netgraft.models.loading import load_teacher
from netgraft.modules import parameters
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.splitting.split import logits_of
from netgraft.training.runner import Runner


def evaluate(
    model: str,
    data: str,
    *,
    weights: Path | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    class_map: Path | None = None,
    data_root: Path | None = None,
    download: bool = False,
    skip_broken: bool = False,
    accelerator: str = "auto",
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Measure a student folder or any timm classifier on the test partition of ``data``, or on all of it without one.

    Returns:
        ``top1`` in percent over all answers that the model can give, ``images``, ``classes_seen`` (how many classes
        they show), ``matched_by`` (``names``, ``wnid``, ``map``, ``number``; see
        :mod:`netgraft.evaluation.class_matching`), ``parameters``, ``macs``, ``data``, ``model``.

    Raises:
        RequestError: No such model, data, class map or device, no labels, or classes that the model doesn't know.
    """
    reporter = reporter or SilentReporter()
    named = None if class_map is None else read_class_map(class_map)
    source = open_data(data, root=data_root, download=download, skip_broken=skip_broken)
    images = source.test_or_all()
    replace(images, name=source.name).known_labels("so there is nothing to compare answers with")
    for remark in source.remarks:
        reporter.note(remark)
    network = load_teacher(model, weights=weights, image_size=image_size, num_classes=num_classes)
    matched = match_classes(images, network, name=model, class_map=named)
    if matched.warning:
        reporter.note(matched.warning)
    config = resolve_model_data_config(network)
    logits_of(network, torch.zeros(1, *config["input_size"]))
    network.to(Runner(accelerator=accelerator).fabric.device)
    logits, labels = predictions(network, matched.images, config, reporter)
    accuracy = round(top1(logits, labels), 4)
    if warning := chance_warning(model, images, accuracy, class_count(network)):
        reporter.note(warning)
    return {
        "model": model,
        "data": source.name,
        "images": len(images),
        "classes_seen": matched.classes_seen,
        "matched_by": matched.by,
        "top1": accuracy,
        "parameters": parameters(network),
        "macs": macs(network, config["input_size"]),
    }
