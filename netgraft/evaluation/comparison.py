"""Teacher and student side by side, on the same test images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from netgraft.data.image_set import ImageSet
from netgraft.data.loader import eval_loader
from netgraft.evaluation.class_matching import answer_names
from netgraft.evaluation.confidence import agreement_by_class, by_confidence, calibration_error
from netgraft.evaluation.intervals import wilson
from netgraft.evaluation.metrics import agreement, is_at_chance, latency, macs, placement, predict, top1
from netgraft.evaluation.without_labels import differences, estimated_gap
from netgraft.files import write_atomically
from netgraft.modules import images_at_once, parameters, state_digest
from netgraft.progress import ProgressReporter
from netgraft.training.identity import fingerprint

LATENCY_BATCHES = {1: 20, 64: 5}
"""Batch size -> forwards, of which the median is taken."""


KNOWN_BY = 32
"""Test images whose pixels tell one data set from another."""


def chance_warning(name: str, images: ImageSet, top1: float, classes: int) -> str:
    """Say what is probably wrong where a trained model answers like a guess; empty where it doesn't.

    Args:
        name: Of the model.
        images: On which it was measured.
        top1: In percent.
        classes: K of its outputs.
    """
    if not is_at_chance(top1, len(images), classes):
        return ""
    return (
        f"warning: {name} is right on {top1:.2f} % of {images.name}, hardly more often than a guess among {classes:,} "
        "classes; probably its classes are in another order than those of the images (see --class-map), or the images "
        "are preprocessed in another way than its weights were trained with"
    )


def predictions(
    model: nn.Module,
    images: ImageSet,
    data_config: Mapping[str, Any],
    reporter: ProgressReporter,
    what: str = "evaluating",
) -> tuple[Tensor, Tensor]:
    """Run a model on images, with the preprocessing that it expects.

    Args:
        model: A classifier.
        images: N of them.
        data_config: Size, mean, standard deviation, interpolation and crop, as timm names them.
        reporter: Is told of each batch.
        what: Name of the progress.

    Returns:
        Logits (N, K) in float32 and labels (N,), -1 where there is none.
    """
    together = images_at_once(data_config["input_size"], placement(model)[0])
    loader = eval_loader(images, data_config, together)

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
    """Return :func:`predictions`, read from a file where this model has been run on these images before.

    A file is known by the model's weights, the preprocessing, the device, the name, number and labels of the images
    and the pixels of a few of them, and carries a SHA-256. A damaged one is written again.

    Args:
        folder: Of the files; made if it isn't there.
        model: A classifier.
        images: N of them.
        data_config: As for :func:`predictions`.
        reporter: Is told of each batch, or of the file that was read.
        what: Name of the progress.

    Returns:
        Logits (N, K) in float32 and labels (N,), -1 where there is none.
    """
    pixels = hashlib.sha256()
    for image in images.load_many(range(0, len(images), max(1, len(images) // KNOWN_BY))):
        pixels.update(image.tobytes())
    identity = fingerprint(
        model=state_digest(model),
        preprocessing=data_config,
        device=next(model.parameters()).device.type,
        images=images.name,
        labels=images.labels,
        count=len(images),
        pixels=pixels.hexdigest(),
    )
    path = folder / f"{identity[:32]}.safetensors"
    if path.exists():
        kept = _kept(path, identity)
        if kept is not None:
            reporter.note(f"{what}: kept in {path}")
            return kept
        reporter.note(f"{what}: {path} is damaged, or of an older version, and is computed again")
    logits, labels = predictions(model, images, data_config, reporter, what)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"logits": logits.contiguous(), "labels": labels.contiguous()}
    about = {_DIGEST: _digest(tensors, identity)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=about))
    return logits, labels


_DIGEST = "sha256"


def _kept(path: Path, identity: str) -> tuple[Tensor, Tensor] | None:
    """Return logits and labels of a file; None where they are other bits than were written."""
    try:
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {})[_DIGEST]
        tensors = load_file(path)
        found = tensors["logits"], tensors["labels"]
    except (SafetensorError, KeyError, OSError, ValueError):
        return None
    return found if _digest(tensors, identity) == expected else None


def _digest(tensors: Mapping[str, Tensor], identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def compare(
    teacher: nn.Module,
    student: nn.Module,
    test: ImageSet | None,
    data_config: Mapping[str, Any],
    reporter: ProgressReporter,
    *,
    ensemble: nn.Module | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Evaluate teacher and student side by side.

    Args:
        teacher: In eval mode or not.
        student: Likewise.
        test: Images that took no part; accuracies are None without them or without their labels.
        data_config: Preprocessing of both, as for :func:`predictions`.
        reporter: Is told of each batch.
        ensemble: Of which accuracy and size are measured as well.
        cache: Folder that keeps the teacher's predictions for other runs.

    Returns:
        Accuracies and agreement in percent, the latter with its 95 % interval, their gap in points, numbers of
        parameters, multiply-accumulates of one image, and median milliseconds of a batch, by their names in a result
        file; the images on which both differ most, the agreement by class, and what the student's confidence is worth.
        Without labels an estimate of the gap instead of it.
    """
    size = tuple(data_config["input_size"])
    row: dict[str, Any] = dict.fromkeys(
        ("teacher_top1", "student_top1", "gap", "agreement", "agreement_low", "agreement_high")
    )
    if test is None:
        row |= {"held_out_images": 0, **dict.fromkeys(ESTIMATED), "differ_most": []}
    else:
        of_teacher = predictions if cache is None else partial(cached_predictions, cache)
        teacher_logits, labels = of_teacher(teacher, test, data_config, reporter, "evaluating the teacher")
        student_logits, _ = predictions(student, test, data_config, reporter, "evaluating the student")
        if test.labels is None:
            row |= _without_labels(teacher_logits, student_logits, test, answer_names(teacher))
        else:
            row |= _answers(teacher_logits, student_logits, test, answer_names(teacher), labels)
            row |= _with_labels(teacher_logits, student_logits, labels)
            if ensemble is not None:
                ensemble_logits, _ = predictions(ensemble, test, data_config, reporter, "evaluating the ensemble")
                row["ensemble_top1"] = round(top1(ensemble_logits, labels), 4)
                row["ensemble_parameters"] = parameters(ensemble)
    for prefix, model in (("teacher_", teacher), ("", student)):
        row[f"{prefix}parameters"] = parameters(model)
        row[f"{prefix}macs"] = macs(model, size)
        for batch, repeats in LATENCY_BATCHES.items():
            row[f"{prefix}latency_ms_{batch}"] = round(latency(model, size, batch, repeats=repeats), 3)
    return row


def compare_without_labels(
    teacher: nn.Module, student: nn.Module, images: ImageSet, data_config: Mapping[str, Any], reporter: ProgressReporter
) -> dict[str, Any]:
    """Return what :func:`compare` says of both networks' answers where there are no labels.

    Args:
        teacher: A classifier.
        student: Another, of the same classes.
        images: That took no part.
        data_config: Preprocessing of both, as for :func:`predictions`.
        reporter: Is told of each batch.

    Returns:
        ``held_out_images``; ``agreement`` in percent and ``estimated_gap`` in points, each with ``_low`` and ``_high``,
        the ends of its 95 % interval; ``differ_most``, the images on which both differ most; ``by_class`` and
        ``by_confidence`` (:mod:`netgraft.evaluation.confidence`).
    """
    expected, _ = predictions(teacher, images, data_config, reporter, "evaluating the teacher")
    found, _ = predictions(student, images, data_config, reporter, "evaluating the student")
    return _without_labels(expected, found, images, answer_names(teacher))


ESTIMATED = ("estimated_gap", "estimated_gap_low", "estimated_gap_high")


def _agreement(teacher_logits: Tensor, student_logits: Tensor) -> dict[str, Any]:
    percent, images = agreement(student_logits, teacher_logits), len(teacher_logits)
    low, high = wilson(round(percent * images / 100), images)
    return {"agreement": round(percent, 4), "agreement_low": round(low, 4), "agreement_high": round(high, 4)}


def _answers(
    teacher_logits: Tensor,
    student_logits: Tensor,
    images: ImageSet,
    classes: Sequence[str],
    labels: Tensor | None = None,
) -> dict[str, Any]:
    """What both networks' answers say side by side, and in single images the right class where it is known."""
    names = images.names or [f"image {number}" for number in range(len(images))]
    different = differences(teacher_logits, student_logits, names, classes)
    if labels is not None:
        different = [{**row, "right": classes[int(labels[row["position"]])]} for row in different]
    return {
        **_agreement(teacher_logits, student_logits),
        "differ_most": different,
        "by_class": agreement_by_class(teacher_logits, student_logits, classes),
        "by_confidence": by_confidence(student_logits, teacher_logits, labels),
    }


def _with_labels(teacher_logits: Tensor, student_logits: Tensor, labels: Tensor) -> dict[str, Any]:
    of_teacher, of_student = (round(top1(logits, labels), 4) for logits in (teacher_logits, student_logits))
    return {
        "teacher_top1": of_teacher,
        "student_top1": of_student,
        "gap": round(of_teacher - of_student, 4),
        "test_images": len(labels),
        "teacher_calibration_error": round(calibration_error(teacher_logits, labels), 4),
        "calibration_error": round(calibration_error(student_logits, labels), 4),
    }


def _without_labels(
    teacher_logits: Tensor, student_logits: Tensor, images: ImageSet, classes: Sequence[str]
) -> dict[str, Any]:
    found = estimated_gap(teacher_logits, student_logits)
    return {
        **_answers(teacher_logits, student_logits, images, classes),
        "held_out_images": len(images),
        **dict(zip(ESTIMATED, (round(each, 4) for each in (found.middle, found.low, found.high)), strict=True)),
    }
