"""A model and a path -> a file, or files that belong together, proven: the Python API of exports."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from netgraft.errors import RequestError, RunError
from netgraft.evaluation.comparison import LATENCY_BATCHES
from netgraft.evaluation.metrics import agreement, latency
from netgraft.exporting.fake_quantisation import learned_in_8_bits
from netgraft.exporting.formats import Format, find_format
from netgraft.exporting.opened import OpenedExport
from netgraft.exporting.pixels import FloatInput, PixelInput, normalised, pixels_of, seeded_pixels
from netgraft.exporting.proof import Proof, prove
from netgraft.files import write_atomically
from netgraft.models.creation import label_names, pretrained_cfg
from netgraft.models.folders import reason_of
from netgraft.modules import images_at_once
from netgraft.progress import ProgressReporter
from netgraft.splitting.split import logits_of

BATCHES = (1, 3)
"""Sizes of the seeded batches that each export is proven on; photographs come in batches of the larger one."""

PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True, eq=False)
class Exported:
    """A file that has been proven, and both sides of the proof.

    Attributes:
        path: Of the file.
        files: All of them: of ``openvino`` the weights lie in a second one.
        format: ``onnx``, ``pt2``, ``openvino`` or ``litert``.
        batch: How many images go in at once; any number if None.
        runtime: What runs it.
        bytes: Of all files.
        proof: On which images, and how near.
        model: A copy of the model, float32 and on the CPU, that takes the input of the file.
        opened: The file, as a module.
        input_size: Of one image in the file's layout.

    Examples:
        >>> import netgraft
        >>> exported = netgraft.export(netgraft.load_teacher("digits_vgg7_bn"), "teacher.pt2", to="pt2")
        >>> exported.format, exported.input_size, exported.proof.difference <= exported.proof.tolerance
        ('pt2', (1, 8, 8), True)
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    batch: int | None
    runtime: str
    bytes: int
    proof: Proof
    model: nn.Module
    opened: OpenedExport
    input_size: tuple[int, int, int]

    def latencies(self) -> dict[str, dict[int, float]]:
        """Measure ``pytorch`` and ``export``: milliseconds of a forward at batch 1 and 64, with as many threads.

        Where the file's batch is fixed, as many forwards as it takes.
        """
        found: dict[str, dict[int, float]] = {"pytorch": {}, "export": {}}
        for batch, repeats in LATENCY_BATCHES.items():
            for name, model in (("pytorch", self.model), ("export", self.opened)):
                found[name][batch] = round(latency(model, self.input_size, batch, repeats=repeats), 3)
        return found


def export(
    model: nn.Module,
    path: str | Path,
    *,
    to: str = "onnx",
    with_preprocessing: bool = False,
    data_config: Mapping[str, Any] | None = None,
    images: Sequence[Image.Image] = (),
    license: str | None = None,
) -> Exported:
    """Write a model into one file that runs without netgraft, prove that both answer alike, or leave nothing behind.

    The file has one input ``images`` - (N, C, H, W), float32, normalised, or with preprocessing (N, H, W, C), uint8,
    already resized to the model's input size - and one output ``logits`` (N, K), for any N; of ``litert`` N is 1.

    Seeded images in batches of 1 and 3, and the photographs, go through both: logits differ by at most
    ``TOLERANCE`` of the largest one (:mod:`netgraft.exporting.proof`), and top-1 is equal on all of them.

    Args:
        model: A classifier; unchanged. Any timm model, or what :func:`netgraft.load_student` returns.
        path: Of the file, which must not exist; that of ``openvino`` ends in ``.xml``, and its weights become a file of
            the same name in ``.bin``.
        to: ``onnx`` (opset 18 or newer), ``pt2``, of ``torch.export``, ``openvino`` (IR, float32), or
            ``litert`` (.tflite, float32).
        with_preprocessing: Whether scaling and normalisation stand in the file; resizing is the caller's.
        data_config: Preprocessing in timm's words; the model's own if None.
        images: Photographs of any size to prove it on besides.
        license: Of the weights, as timm or SPDX names it, to be noted in the file.

    Raises:
        RequestError: No such format, a package is missing, or the path can't be written to.
        RunError: The model can't be exported, the export answers otherwise, or the disk is full.

    Examples:
        >>> import netgraft
        >>> teacher = netgraft.load_teacher("digits_vgg7_bn")
        >>> exported = netgraft.export(teacher, "digits.pt2", to="pt2")
        >>> exported.proof.images, exported.proof.difference < 1e-4
        (4, True)
    """
    path = Path(path)
    chosen = find_format(to)
    check_free(chosen, path)
    content, exported = _proven(
        model,
        path,
        chosen,
        with_preprocessing=with_preprocessing,
        data_config=data_config,
        images=images,
        license=license,
    )
    write_files(exported.files, content)
    return exported


@dataclass(frozen=True, eq=False)
class ExportedInt8:
    """An ONNX file in 8 bits, beside the float one that it was made of and that was never written.

    Attributes:
        path: Of the file.
        bytes: Of the file.
        float_export: The float one, proven.
        opened: The file, as a module.
        agreement: On how many of the images it answers like the float student, in percent.
        agreement_images: On how many that was measured.
        held_out: Whether these were others than those of the calibration.
        calibration_images: With how many the ranges were found.
        layers: How many layers with weights there are.
        left_in_float: Those that aren't in 8 bits.
    """

    path: Path
    bytes: int
    float_export: Exported
    opened: OpenedExport
    agreement: float
    agreement_images: int
    held_out: bool
    calibration_images: int
    layers: int
    left_in_float: tuple[str, ...]


def export_int8(
    model: nn.Module,
    path: str | Path,
    *,
    calibration: Sequence[Image.Image],
    held_out: Sequence[Image.Image] = (),
    max_drop: float | None = None,
    train_steps: int = 0,
    with_preprocessing: bool = False,
    data_config: Mapping[str, Any] | None = None,
    license: str | None = None,
    told: Callable[[str], None] = lambda _: None,
    reporter: ProgressReporter | None = None,
) -> ExportedInt8:
    """Write a model into one ONNX file in 8 bits, or leave nothing behind; see :mod:`netgraft.exporting.int8`.

    The float export is proven as by :func:`export` first.

    Args:
        model: As for :func:`export`.
        path: Likewise.
        calibration: Photographs that say how large activations become; no labels.
        held_out: Others, on which the agreement with the float model is measured; those of the calibration if empty.
        max_drop: Points of agreement that may be lost: the most sensitive layers then stay in float.
        train_steps: Of distillation through fake quantisation in front, from the float model, on views of the
            calibration's photographs (:mod:`netgraft.exporting.fake_quantisation`); the float file is the untrained
            one's.
        with_preprocessing: As for :func:`export`.
        data_config: Likewise.
        license: Likewise.
        told: What is measured on the way.
        reporter: Is told of the steps.

    Raises:
        RequestError: There are no photographs, or as for :func:`export`.
        RunError: The model can't be quantised within ``max_drop``, or as for :func:`export`.
    """
    path = Path(path)
    chosen = find_format("onnx")
    check_free(chosen, path)
    if not calibration:
        raise RequestError("expected photographs to find the ranges of 8 bits with, got none; give --data FOLDER")
    from netgraft.exporting.int8 import quantise  # its packages are an extra's

    config = dict(data_config or resolve_model_data_config(model))
    (content,), exported = _proven(
        model,
        path,
        chosen,
        with_preprocessing=with_preprocessing,
        data_config=config,
        images=(),
        license=license,
    )

    def entering(images: Sequence[Image.Image]) -> Tensor:
        pixels = pixels_of(images, config)
        return pixels if with_preprocessing else normalised(pixels, config)

    few = entering(calibration)
    tried = entering(held_out) if held_out else few
    expected = _answers(exported.opened, tried)

    def agreement_with_float(quantised: bytes) -> float:
        return agreement(_answers(chosen.opened((quantised,), torch.get_num_threads()), tried), expected)

    if train_steps:
        images = normalised(pixels_of(calibration, config), config)
        learned = learned_in_8_bits(model, calibration, images, config, steps=train_steps, reporter=reporter)
        (content,), _ = _proven(
            learned, path, chosen, with_preprocessing=with_preprocessing, data_config=config, images=(), license=license
        )
    found = quantise(content, few, agreement_with_float, max_drop=max_drop, told=told)
    opened = chosen.opened((found.content,), torch.get_num_threads())
    write_files((path,), (found.content,))
    return ExportedInt8(
        path,
        len(found.content),
        exported,
        opened,
        agreement(_answers(opened, tried), expected),
        len(tried),
        bool(held_out),
        len(few),
        found.layers,
        found.left_in_float,
    )


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(images_at_once(images.shape[1:], images.device))])


def _proven(
    model: nn.Module,
    path: Path,
    chosen: Format,
    *,
    with_preprocessing: bool,
    data_config: Mapping[str, Any] | None,
    images: Sequence[Image.Image],
    license: str | None,
) -> tuple[tuple[bytes, ...], Exported]:
    """Return the bytes of each file, not written yet, and what is known of them."""
    config = dict(data_config or resolve_model_data_config(model))
    own = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    logits_of(own, torch.zeros(1, *config["input_size"]))
    facts = describe(own, config, with_preprocessing=with_preprocessing, license=license)
    entered, sample = _entered(own, config, with_preprocessing)
    content, opened = _encoded(chosen, entered, sample, facts)
    proof = prove(own, opened, _batches(config, images, with_preprocessing))
    first, second, third = sample.shape[1:]
    size = (first, second, third)
    files = chosen.files(path)
    bytes_ = sum(map(len, content))
    return content, Exported(
        path, files, chosen.name, chosen.batch, chosen.runtime, bytes_, proof, entered, opened, size
    )


def check_free(chosen: Format, path: Path) -> None:
    """Refuse a path that can't be written to, before the work is done. Raises RequestError."""
    for file in chosen.files(path):
        if os.path.lexists(file):
            raise RequestError(f"expected a new file, got {file}, which exists; remove it or choose another --out")
    if not path.parent.is_dir():
        raise RequestError(f"expected a folder for {path.name}, got {path.parent}, which is none; make it first")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"expected a folder that can be written to, got {path.parent}; choose another --out")


def write_files(files: Sequence[Path], contents: Sequence[bytes]) -> None:
    """Write each file whole, and all of them or none. Raises RunError, where the disk is full for instance.

    The first one, which is the one to open, gets its name last: where it stands, so do the others.
    """
    with ExitStack() as undo:
        for file, content in reversed(list(zip(files, contents, strict=True))):
            write_atomically(file, partial(_write_bytes, content=content), advice="free some space and export again")
            undo.callback(file.unlink, missing_ok=True)
        undo.pop_all()


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def describe(
    model: nn.Module, data_config: Mapping[str, Any], *, with_preprocessing: bool, license: str | None
) -> dict[str, str]:
    """Return what a file says of the model in it: JSON texts by name.

    Args:
        model: A classifier.
        data_config: Its preprocessing.
        with_preprocessing: Whether scaling and normalisation stand in the file.
        license: Of the weights, where it is known.

    Returns:
        ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode`` in timm's words;
        ``preprocessing`` (``inside`` or ``outside`` the file); ``architecture``, ``label_names`` (names by position)
        and ``license`` where they are known.
    """
    about: dict[str, Any] = {name: data_config[name] for name in PREPROCESSING if name in data_config}
    about["preprocessing"] = "inside" if with_preprocessing else "outside"
    about["architecture"] = pretrained_cfg(model).get("architecture")
    about["label_names"] = label_names(model) or None
    about["license"] = license
    return {name: json.dumps(value) for name, value in about.items() if value is not None}


def _entered(model: nn.Module, config: Mapping[str, Any], with_preprocessing: bool) -> tuple[nn.Module, Tensor]:
    """Return the model behind the input that the file has, and two images for it."""
    pixels = seeded_pixels(2, config)
    if with_preprocessing:
        return PixelInput(model, config["mean"], config["std"]).eval(), pixels
    return FloatInput(model).eval(), normalised(pixels, config)


def _encoded(
    chosen: Format, model: nn.Module, sample: Tensor, facts: Mapping[str, str]
) -> tuple[tuple[bytes, ...], OpenedExport]:
    try:
        content = chosen.encode(_traced(model, sample, chosen.batch), facts)
        return content, chosen.opened(content, torch.get_num_threads())
    except Exception as error:  # tracing, translation and opening raise many kinds
        raise RunError(
            f"could not export the model to {chosen.name}: {reason_of(error)}; nothing was written"
        ) from error


def _traced(model: nn.Module, sample: Tensor, batch: int | None) -> ExportedProgram:
    shapes = {"images": {0: Dim("batch")}} if batch is None else None
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it prints its own report besides raising
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (sample[:batch],), dynamic_shapes=shapes)
    finally:
        logger.setLevel(level)


def _batches(
    config: Mapping[str, Any], images: Sequence[Image.Image], with_preprocessing: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    batches = [seeded_pixels(count, config, seed=count) for count in BATCHES]
    if images:
        batches += pixels_of(images, config).split(max(BATCHES))
    for pixels in batches:
        floats = normalised(pixels, config)
        yield floats, pixels if with_preprocessing else floats
