"""``netgraft export``: a run's student -> a file that runs without netgraft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL.Image import Image

from netgraft.data.image_set import ImageSet
from netgraft.data.sources import open_data
from netgraft.errors import RequestError
from netgraft.evaluation.comparison import LATENCY_BATCHES
from netgraft.evaluation.metrics import latency
from netgraft.exporting.export import check_free, export, export_int8
from netgraft.exporting.formats import find_format
from netgraft.jobs.photographs import find_photographs
from netgraft.jobs.run_folder import RunFolder
from netgraft.models.card import license_of_weights
from netgraft.models.loading import is_folder
from netgraft.models.students import load_student
from netgraft.progress import ProgressReporter, SilentReporter

MOST_PHOTOGRAPHS = 64
"""Of a run, through model and file."""

MOST_CALIBRATION, MOST_HELD_OUT = 128, 1000
"""Photographs that the ranges of 8 bits are found with, and others that they are tried on."""


def export_student(
    folder: str,
    out: Path,
    *,
    to: str,
    with_preprocessing: bool = False,
    data_root: Path | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Export the student of a folder, prove it on the run's photographs too, and measure both.

    Args:
        folder: Of a run, a student or a trained model.
        out: The file, which must not exist.
        to: A format's name.
        with_preprocessing: As for :func:`netgraft.export`.
        data_root: Folder of the named data sets.
        reporter: Is told of each part.

    Returns:
        ``model``, ``file``, ``files`` (of ``openvino`` two), ``format``, ``batch`` (images that go in at once;
        any number if None), ``bytes``, ``compared_on`` (images),
        ``photographs`` (of them), ``difference`` and ``tolerance`` (parts of the largest logit), ``runtime``, and
        median milliseconds of a batch ``latency_ms_1`` and ``latency_ms_64`` of the file, beside
        ``pytorch_latency_ms_1`` and ``..._64``.

    Raises:
        RequestError: No such student or format, or a path that can't be written to.
        RunError: The model can't be exported, or the export answers otherwise.
    """
    reporter = reporter or SilentReporter()
    check_free(find_format(to), out)
    if not is_folder(folder):
        raise RequestError(f"expected the folder of a run or of a student, got {folder}, which is none; check the path")
    model = load_student(folder)
    found = find_photographs(Path(folder), data_root=data_root)
    few = [] if found is None else found.few[:MOST_PHOTOGRAPHS]
    reporter.note(f"exporting {folder} to {to}" + ("" if few else "; no photographs of a run were found"))
    exported = export(
        model,
        out,
        to=to,
        with_preprocessing=with_preprocessing,
        images=few,
        license=license_of(Path(folder)),
    )
    times = exported.latencies()
    return {
        "model": folder,
        "file": str(out),
        "files": [str(file) for file in exported.files],
        "format": to,
        "batch": exported.batch,
        "with_preprocessing": with_preprocessing,
        "bytes": exported.bytes,
        "compared_on": exported.proof.images,
        "photographs": len(few),
        "difference": exported.proof.difference,
        "tolerance": exported.proof.tolerance,
        "runtime": exported.runtime,
        **{f"latency_ms_{batch}": ms for batch, ms in times["export"].items()},
        **{f"pytorch_latency_ms_{batch}": ms for batch, ms in times["pytorch"].items()},
    }


def export_student_int8(
    folder: str,
    out: Path,
    *,
    with_preprocessing: bool = False,
    max_drop: float | None = None,
    train_steps: int = 0,
    data: str | None = None,
    data_root: Path | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Export the student of a folder to ONNX in 8 bits, and measure it beside the float one.

    Args:
        folder: Of a run, a student or a trained model.
        out: The file, which must not exist.
        with_preprocessing: As for :func:`netgraft.export`.
        max_drop: Points of agreement with the float student that may be lost; None leaves no layer in float.
        train_steps: Of distillation through fake quantisation in front.
        data: Name or path of photographs to use instead of the run's own.
        data_root: Folder of the named data sets.
        reporter: Is told of each measurement.

    Returns:
        ``model``, ``file``, ``format``, ``with_preprocessing``, ``bytes`` and ``float_bytes``, ``agreement`` with the
        float student in percent, ``agreement_images``, ``held_out`` (whether these took no part in the calibration),
        ``calibration_images``, ``train_steps``, ``layers``, ``left_in_float``, and median milliseconds of a batch of 1
        and of 64 in ONNX Runtime, ``latency_ms_...`` and ``float_latency_ms_...``.

    Raises:
        RequestError: As for :func:`export_student`, or there are no photographs.
        RunError: Likewise, or not within ``max_drop``.
    """
    reporter = reporter or SilentReporter()
    check_free(find_format("onnx"), out)
    if not is_folder(folder):
        raise RequestError(f"expected the folder of a run or of a student, got {folder}, which is none; check the path")
    calibration, held_out = _calibration(Path(folder), data, data_root)
    exported = export_int8(
        load_student(folder),
        out,
        calibration=calibration,
        held_out=held_out,
        max_drop=max_drop,
        train_steps=train_steps,
        with_preprocessing=with_preprocessing,
        license=license_of(Path(folder)),
        told=reporter.note,
        reporter=reporter,
    )
    times: dict[str, float] = {}
    for batch, repeats in LATENCY_BATCHES.items():
        for prefix, model in (("", exported.opened), ("float_", exported.float_export.opened)):
            took = latency(model, exported.float_export.input_size, batch, repeats=repeats)
            times[f"{prefix}latency_ms_{batch}"] = round(took, 3)
    return {
        "model": folder,
        "file": str(out),
        "format": "onnx",
        "with_preprocessing": with_preprocessing,
        "bytes": exported.bytes,
        "float_bytes": exported.float_export.bytes,
        "agreement": round(exported.agreement, 4),
        "agreement_images": exported.agreement_images,
        "held_out": exported.held_out,
        "calibration_images": exported.calibration_images,
        "train_steps": train_steps,
        "layers": exported.layers,
        "left_in_float": list(exported.left_in_float),
        **times,
    }


def _calibration(folder: Path, data: str | None, data_root: Path | None) -> tuple[list[Image], list[Image]]:
    """Return photographs to calibrate with, and others that take no part."""
    if data is None:
        found = find_photographs(folder, data_root=data_root)
        if found is None:
            raise RequestError(
                f"expected photographs to find the ranges of 8 bits with, got none: {folder} is no run whose data is "
                "still there; give --data FOLDER"
            )
        others = found.others
        return list(found.few[:MOST_CALIBRATION]), [] if others is None else _spread(others, MOST_HELD_OUT)
    source = open_data(data, root=data_root)
    if source.test is not None:
        return _spread(source.train, MOST_CALIBRATION), _spread(source.test, MOST_HELD_OUT)
    images = _spread(source.train, MOST_CALIBRATION + MOST_HELD_OUT)
    # every second one, until there are enough
    few = images[::2][:MOST_CALIBRATION]
    return few, images[1::2]


def _spread(images: ImageSet, most: int) -> list[Image]:
    """Load up to ``most`` images at even distances: folders are sorted by class."""
    count = min(most, len(images))
    return images.load_many([number * len(images) // count for number in range(count)])


def license_of(folder: Path) -> str | None:
    """Return the licence of the weights that a run's student came from, if timm names one for them."""
    config = RunFolder(folder).config() or {}
    options, teacher = config.get("options"), config.get("teacher")
    # of a run that doesn't say whose weights its teacher had, nothing is known
    if not isinstance(options, dict) or "teacher_weights" in options or not isinstance(teacher, str):
        return None
    return license_of_weights(teacher)
