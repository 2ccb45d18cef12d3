"""Which library quantises: ONNX Runtime, which ``netgraft export --int8`` uses, beside NNCF on the same photographs.

    pip install nncf
    python -m benchmarks.studies.int8_libraries RUN benchmarks/results/int8-libraries/NAME.json --images 1000

Runs are those of benchmarks.studies.int8.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config

from benchmarks.studies.int8 import chosen
from netgraft.evaluation.class_matching import match_classes
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.environment import environment
from netgraft.evaluation.metrics import agreement, top1
from netgraft.exporting.export import export, export_int8
from netgraft.exporting.pixels import normalised, pixels_of
from netgraft.files import write_text
from netgraft.jobs.photographs import find_photographs
from netgraft.models.students import load_student
from netgraft.progress import SilentReporter

CALIBRATION = 128
"""Photographs that both take their ranges of."""


def compare(folder: Path, images: int) -> dict[str, Any]:
    """Quantise a run's student by both, all layers, per channel, and run both on the same test images.

    Args:
        folder: Of the run, whose photographs are the calibration.
        images: Of the test set, at even distances; they choose nothing.
    """
    import nncf
    import onnx
    import onnxruntime

    student, found = load_student(folder), find_photographs(folder)
    if found is None or found.others is None:
        raise SystemExit(f"{folder} is no run whose data is still there, with a test set")
    config = resolve_model_data_config(student)
    few = list(found.few)[:CALIBRATION]
    with tempfile.TemporaryDirectory() as scratch:
        ours = export_int8(student, Path(scratch, "int8.onnx"), calibration=few)
        export(student, Path(scratch, "float.onnx"))
        model = onnx.load(str(Path(scratch, "float.onnx")))
    batches = normalised(pixels_of(few, config), config).split(1)
    calibration = nncf.Dataset(batches, lambda batch: {"images": batch.numpy()})
    content = nncf.quantize(model, calibration, subset_size=len(few)).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    class Other(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])

    networks = {"PyTorch": student, "ONNX Runtime": ours.opened, "NNCF": Other()}
    test = chosen(match_classes(found.others, student, name=str(folder)).images, images)
    answers = {name: predictions(network, test, config, SilentReporter()) for name, network in networks.items()}
    return {
        "run": folder.resolve().name,
        "test_images": len(test),
        "calibration_images": len(few),
        "nncf": nncf.__version__,
        "onnxruntime": onnxruntime.__version__,
        "bytes": {"ONNX Runtime": ours.bytes, "NNCF": len(content)},
        "networks": {
            name: {
                "top1": round(top1(logits, labels), 4),
                "agreement": round(agreement(logits, answers["PyTorch"][0]), 4),
            }
            for name, (logits, labels) in answers.items()
        },
        **environment(torch.device("cpu")),
    }


def main() -> None:
    """Write the file of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="of the test set")
    asked = parser.parse_args()
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    write_text(asked.file, json.dumps(compare(asked.run, asked.images), indent=1) + "\n")


if __name__ == "__main__":
    main()
