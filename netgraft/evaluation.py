"""Measure models on labelled images: each figure once, the same way for everybody."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from netgraft.blocks import logits_of
from netgraft.data import ImageSet, eval_loader, open_data
from netgraft.errors import RequestError
from netgraft.files import write_atomically
from netgraft.metrics import agreement, latency, macs, parameters, predict, state_digest, top1
from netgraft.models import class_count, load_teacher
from netgraft.reporting import Quiet, Reporter
from netgraft.runner import Runner
from netgraft.students import load_student

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


def answers(
    model: nn.Module, images: ImageSet, data_config: Mapping[str, Any], reporter: Reporter, what: str = "evaluating"
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) in float32 and labels (N,)."""
    loader = eval_loader(images, data_config)

    def batches() -> Iterator[Any]:
        yield from reporter.track(loader, total=len(loader), name=what)

    return predict(model, batches())


def kept_answers(
    folder: Path, model: nn.Module, images: ImageSet, data_config: Mapping[str, Any], reporter: Reporter, what: str
) -> tuple[Tensor, Tensor]:
    """:func:`answers`, read from a file in ``folder`` where this model has answered these images there before.

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
    logits, labels = answers(model, images, data_config, reporter, what)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"logits": logits.contiguous(), "labels": labels.contiguous()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    return logits, labels


def compare(
    teacher: nn.Module,
    student: nn.Module,
    test: ImageSet | None,
    data_config: Mapping[str, Any],
    reporter: Reporter,
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
        asked = answers if kept is None else partial(kept_answers, kept)
        theirs, labels = asked(teacher, test, data_config, reporter, "evaluating the teacher")
        mine, _ = answers(student, test, data_config, reporter, "evaluating the student")
        row["teacher_top1"] = round(top1(theirs, labels), 4)
        row["student_top1"] = round(top1(mine, labels), 4)
        row["gap"] = round(row["teacher_top1"] - row["student_top1"], 4)
        row["agreement"] = round(agreement(mine, theirs), 4)
        row["test_images"] = len(test)
        if ensemble is not None:
            common, _ = answers(ensemble, test, data_config, reporter, "evaluating the ensemble")
            row["ensemble_top1"] = round(top1(common, labels), 4)
            row["ensemble_parameters"] = parameters(ensemble)
    for prefix, model in (("teacher_", teacher), ("", student)):
        row[f"{prefix}parameters"] = parameters(model)
        row[f"{prefix}macs"] = macs(model, size)
        for batch, repeats in LATENCY_BATCHES.items():
            row[f"{prefix}latency_ms_{batch}"] = round(latency(model, size, batch, repeats=repeats), 3)
    return row


def environment(runner: Runner) -> dict[str, Any]:
    """Versions and machine, as results quote them."""
    from netgraft import __version__

    device = runner.fabric.device
    return {
        "versions": {
            "netgraft": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "device": str(device),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Name the CPU, with the instructions that decide how fast bfloat16 is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in facts.items()}
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in names.get("flags", "")]
    return ", ".join([names.get("model name", platform.machine()), *flags])


def evaluate(
    model: str,
    data: str,
    *,
    weights: Path | None = None,
    image_size: int | None = None,
    data_root: Path | None = None,
    download: bool = False,
    accelerator: str = "auto",
    reporter: Reporter | None = None,
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
    logits, labels = answers(network, images, config, reporter or Quiet())
    return {
        "model": model,
        "data": source.name,
        "images": len(images),
        "top1": round(top1(logits, labels), 4),
        "parameters": parameters(network),
        "macs": macs(network, config["input_size"]),
    }
