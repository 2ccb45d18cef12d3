"""ONNX: written by torch's exporter, run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from netgraft.exporting.opened import OpenedExport

MOST_BYTES = 2**31 - 1
"""What a protobuf message holds."""


def encode(program: ExportedProgram, facts: Mapping[str, str]) -> tuple[bytes]:
    """Return the bytes of an ONNX file with one input ``images`` and one output ``logits``, dynamic in the batch.

    Args:
        program: Of one input.
        facts: Become the model's ``metadata_props``.

    Raises:
        ValueError: The weights are too large for one file.
        Exception: Of many kinds, where an operator isn't known.
    """
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes of weights in an ONNX file, got {weights}")
    with _silence():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: Dim("batch")}},
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    for name, text in facts.items():
        model.metadata_props.add(key=name, value=text)
    return (cast(bytes, model.SerializeToString()),)


def opened(content: tuple[bytes, ...], threads: int) -> OpenedExport:
    """Open an ONNX file in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content[0], options, providers=["CPUExecutionProvider"])
    dtype = {"tensor(uint8)": torch.uint8, "tensor(float)": torch.float32}[session.get_inputs()[0].type]

    def answer(images: Tensor) -> Tensor:
        [logits] = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(cast(Any, logits))

    return OpenedExport(answer, dtype)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's advice to its developers out of what people and programs read."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
