"""Programs that open exports as a stranger does: without netgraft, and without torch where that isn't needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WITHOUT = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Refused())
import numpy as np
from pathlib import Path

for path in map(Path, sys.argv[1:]):
    images = dict(np.load(path.with_suffix(".in.npz")))
    np.savez(path.with_suffix(".out.npz"), **answers(path, images))
assert not {refused} & {{name.partition(".")[0] for name in sys.modules}}
"""

_ONNX = """
def answers(path, images):
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return {name: session.run(["logits"], {"images": each})[0] for name, each in images.items()}
"""

_OPENVINO = """
def answers(path, images):
    import openvino
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {name: model({"images": each})["logits"] for name, each in images.items()}
"""

_LITERT = """
def answers(path, images):
    from ai_edge_litert.interpreter import Interpreter
    run = Interpreter(model_path=str(path)).get_signature_runner()
    return {
        name: np.concatenate([run(images=image[None])["logits"] for image in each]) for name, each in images.items()
    }
"""

_PT2 = """
def answers(path, images):
    import torch
    model = torch.export.load(str(path)).module()
    with torch.no_grad():
        return {name: model(torch.from_numpy(each)).numpy() for name, each in images.items()}
"""


def answers_of_a_stranger(
    images: dict[Path, dict[str, NDArray[Any]]],
) -> dict[Path, dict[str, NDArray[np.float32]]]:
    """Open exports of one format in a fresh process, where netgraft can't be imported, nor torch where it isn't needed.

    Args:
        images: For each file batches by name.

    Returns:
        Logits by the same names.
    """
    [kind] = {path.suffix for path in images}
    refused, own = {"netgraft", "timm"}, _PT2
    if kind != ".pt2":
        refused, own = {*refused, "torch"}, {".onnx": _ONNX, ".xml": _OPENVINO, ".tflite": _LITERT}[kind]
    for path, batches in images.items():
        np.savez(path.with_suffix(".in.npz"), **batches)  # type: ignore[arg-type]
    code = own + _WITHOUT.format(refused=refused)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, images)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return {path: dict(np.load(path.with_suffix(".out.npz"))) for path in images}
