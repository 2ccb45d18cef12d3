"""OpenVINO's IR: read from the ONNX file that netgraft writes anyway, run by OpenVINO.

An IR is two files, the network as .xml and its weights as .bin. OpenVINO opens no archive of both, and finds the .bin
by the name of the .xml: so both stand beside one another under one name.

It reads ONNX by itself. Its ``convert_model`` would report each call to its makers unless somebody opts out
(``openvino_telemetry``); and from PyTorch's program it knows neither all operators (no antialiased bicubic resizing, as
in ViTs) nor the names and sizes of input and output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram

from netgraft.exporting import onnx_format
from netgraft.exporting.opened import OpenedExport

FACTS = "netgraft"
"""In the .xml, the part of its ``rt_info`` that holds what the file says of itself."""

SUFFIXES = (".xml", ".bin")


def encode(program: ExportedProgram, facts: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Return the bytes of an .xml and a .bin with one input ``images`` and one output ``logits``, dynamic in the batch.

    Weights stay float32: OpenVINO would halve them unless told not to.

    Args:
        program: Of one input.
        facts: Become ``rt_info`` under :data:`FACTS`.

    Raises:
        ValueError: As for ONNX, or the folder of temporary files is full.
        Exception: Of many kinds, where an operator isn't known.
    """
    import openvino

    [content] = onnx_format.encode(program, {})
    model = openvino.Core().read_model(content)
    for name, text in facts.items():
        model.set_rt_info(text, [FACTS, name])
    # it writes to paths only
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"model{suffix}") for suffix in SUFFIXES]
        try:
            openvino.save_model(model, files[0], compress_to_fp16=False)
        except RuntimeError as error:  # "iostream error" is all that it says
            raise ValueError(
                f"OpenVINO can't write to {tempfile.gettempdir()}; free some space there or let TMPDIR name another"
            ) from error
        network, weights = (file.read_bytes() for file in files)
    return network, weights


def opened(content: tuple[bytes, ...], threads: int) -> OpenedExport:
    """Open an IR in OpenVINO, on the CPU and in float32: by itself it takes bfloat16 where the CPU has that."""
    import openvino

    core = openvino.Core()
    model = core.read_model(*content)
    asked = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", asked)
    dtype = {"u8": torch.uint8, "f32": torch.float32}[compiled.input("images").element_type.get_type_name()]

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(cast(Any, compiled({"images": images.numpy()})["logits"]))

    return OpenedExport(answer, dtype)
