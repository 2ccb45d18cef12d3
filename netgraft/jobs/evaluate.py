"""``netgraft evaluate``: any classifier on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config

from netgraft.data.sources import open_data
from netgraft.errors import RequestError
from netgraft.evaluation.comparison import check_classes, predictions
from netgraft.evaluation.metrics import macs, top1
from netgraft.models.creation import load_teacher
from netgraft.models.students import load_student
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
    data_root: Path | None = None,
    download: bool = False,
    accelerator: str = "auto",
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Measure a student folder or any timm classifier on the test partition of ``data``, or on all of it without one.

    Returns:
        ``top1`` in percent, ``images``, ``parameters``, ``macs``, ``data``, ``model``.

    Raises:
        RequestError: No such model, data or device, no labels, or class counts that differ.
    """
    source = open_data(data, root=data_root, download=download)
    images = source.test_or_all()
    if images.labels is None:
        raise RequestError(f"{source.name} has no class folders, so there is nothing to compare answers with")
    is_folder = weights is None and image_size is None and Path(model).is_dir()
    network = load_student(model) if is_folder else load_teacher(model, weights=weights, image_size=image_size)
    check_classes(network, model, images)
    config = resolve_model_data_config(network)
    logits_of(network, torch.zeros(1, *config["input_size"]))
    network.to(Runner(accelerator=accelerator).fabric.device)
    logits, labels = predictions(network, images, config, reporter or SilentReporter())
    return {
        "model": model,
        "data": source.name,
        "images": len(images),
        "top1": round(top1(logits, labels), 4),
        "parameters": parameters(network),
        "macs": macs(network, config["input_size"]),
    }
