"""An ONNX file -> the same network in 8 bits, by ONNX Runtime; layers are left in float by measurement."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from netgraft.errors import RunError
from netgraft.models.folders import reason_of

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators with weights, which are quantised and may be left in float; what lies between two of them follows."""


@dataclass(frozen=True)
class Quantised:
    """A network in 8 bits.

    Attributes:
        content: Of the ONNX file.
        left_in_float: Names of the layers that are not in 8 bits, the most sensitive first.
        layers: How many there are in all.
    """

    content: bytes
    left_in_float: tuple[str, ...]
    layers: int


class Batches(CalibrationDataReader):
    """Calibration images, one after another."""

    def __init__(self, images: Tensor) -> None:
        self._images = images
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        """Return the next image, or None behind the last one."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Begin again."""
        self._left: Iterator[dict[str, Any]] = ({"images": each.numpy()} for each in self._images.split(1))


def quantise(
    content: bytes,
    calibration: Tensor,
    agreement: Callable[[bytes], float],
    *,
    max_drop: float | None,
    told: Callable[[str], None] = lambda _: None,
) -> Quantised:
    """Quantise weights per channel and activations per tensor (QDQ: pairs of QuantizeLinear and DequantizeLinear).

    Where the agreement falls below ``100 - max_drop``, each layer is left in float alone, the agreements are ranked,
    and as many of the most sensitive layers stay in float as are needed, found by bisection.

    Args:
        content: Of an ONNX file with the input ``images``.
        calibration: Images as that input takes them; ranges of activations are the smallest and largest values.
        agreement: Of a quantised file with the float network, in percent.
        max_drop: Points of agreement that may be lost; None leaves no layer in float.
        told: What is measured.

    Raises:
        RunError: The network can't be quantised, or not within ``max_drop``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch, "prepared.onnx")
        layers = _prepare(content, prepared)

        def in_8_bits(excluded: Sequence[str]) -> bytes:
            return _quantised(prepared, Path(scratch, "int8.onnx"), calibration, excluded)

        whole = in_8_bits(())
        reached = agreement(whole)
        told(f"all {len(layers)} layers in 8 bits: {reached:.2f} % of the answers are the float network's")
        if max_drop is None or reached >= 100 - max_drop:
            return Quantised(whole, (), len(layers))
        ranked = _most_sensitive(layers, in_8_bits, agreement, told)
        low, high, best = 1, len(layers), None
        while low <= high:
            count = (low + high) // 2
            tried = in_8_bits(ranked[:count])
            reached = agreement(tried)
            told(f"{count} layers in float: {reached:.2f} %")
            if reached >= 100 - max_drop:
                best, high = Quantised(tried, tuple(ranked[:count]), len(layers)), count - 1
            else:
                low = count + 1
        if best is None:
            raise RunError(
                f"expected at most {max_drop:g} points of agreement lost, got {100 - reached:.2f} even with all layers "
                "in float; allow more with --max-drop, or leave --int8 out"
            )
        return best


def _most_sensitive(
    layers: Sequence[str],
    in_8_bits: Callable[[Sequence[str]], bytes],
    agreement: Callable[[bytes], float],
    told: Callable[[str], None],
) -> list[str]:
    """Rank layers by the agreement with all others in 8 bits: what helps most in float comes first."""
    gained = {}
    for number, layer in enumerate(layers, 1):
        gained[layer] = agreement(in_8_bits([layer]))
        told(f"layer {number}/{len(layers)}, {layer}, alone in float: {gained[layer]:.2f} %")
    return sorted(layers, key=lambda layer: -gained[layer])


def _prepare(content: bytes, path: Path) -> list[str]:
    """Write the file with shapes and folded batch norms; return its layers' names."""
    raw = path.with_name("float.onnx")
    raw.write_bytes(content)
    try:
        # the exporter has inferred the shapes already; symbolic inference would ask for sympy
        quant_pre_process(str(raw), str(path), skip_symbolic_shape=True)
    except Exception as error:  # of a library, of many kinds
        raise RunError(f"could not quantise the model: {reason_of(error)}; nothing was written") from error
    return [node.name for node in onnx.load(path).graph.node if node.op_type in LAYERS]


def _quantised(prepared: Path, out: Path, calibration: Tensor, excluded: Sequence[str]) -> bytes:
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(
        logging.ERROR
    )  # it warns that pre-processing wasn't done, by a mark that its own version may not set
    try:
        quantize_static(
            str(prepared),
            str(out),
            Batches(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=list(excluded),
        )
    except Exception as error:
        raise RunError(f"could not quantise the model: {reason_of(error)}; nothing was written") from error
    finally:
        logger.setLevel(level)
    return out.read_bytes()
