"""What 8 bits cost: accuracy, agreement, file and milliseconds of a run's student in float and in 8 bits, side by side.

    netgraft distill --data cifar10-jpeg --teacher cifar_vgg16_bn \
        --teacher-weights cifar_vgg16_bn.cifar10-jpeg.safetensors --shots 10 \
        --student cifar_vgg16_bn_half --steps 0 --out vgg
    python -m benchmarks.studies.int8 vgg benchmarks/results/int8/cifar_vgg16_bn_half.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config

from netgraft.data.image_set import ImageSet
from netgraft.evaluation.class_matching import match_classes
from netgraft.evaluation.comparison import LATENCY_BATCHES, predictions
from netgraft.evaluation.environment import environment
from netgraft.evaluation.metrics import agreement, latency, top1
from netgraft.exporting.export import export_int8
from netgraft.files import write_text
from netgraft.jobs.photographs import find_photographs
from netgraft.models.students import load_student
from netgraft.progress import SilentReporter


def measure(folder: Path, images: int) -> dict[str, Any]:
    """Export a run's student to ONNX in float and in 8 bits, and run PyTorch and both files on the same test images.

    Args:
        folder: Of the run, whose photographs are the calibration.
        images: Of the test set, at even distances.
    """
    student, found = load_student(folder), find_photographs(folder)
    if found is None or found.others is None:
        raise SystemExit(f"{folder} is no run whose data is still there, with a test set")
    config = resolve_model_data_config(student)
    matched = match_classes(found.others, student, name=str(folder)).images
    with tempfile.TemporaryDirectory() as scratch:
        # all layers in 8 bits: the test images choose nothing
        exported = export_int8(student, Path(scratch, "int8.onnx"), calibration=found.few)
    networks = {
        "pytorch": exported.float_export.model,
        "onnx": exported.float_export.opened,
        "int8": exported.opened,
    }
    chosen = _chosen(matched, images)
    logits = {name: predictions(network, chosen, config, SilentReporter()) for name, network in networks.items()}
    rows = {
        name: {
            "top1": round(top1(found_logits, labels), 4),
            "agreement": round(agreement(found_logits, logits["pytorch"][0]), 4),
        }
        for name, (found_logits, labels) in logits.items()
    }
    rows["onnx"]["bytes"], rows["int8"]["bytes"] = exported.float_export.bytes, exported.bytes
    # side by side, so that other work on the machine meets all of them
    for batch, repeats in LATENCY_BATCHES.items():
        for name, network in networks.items():
            took = latency(network, exported.float_export.input_size, batch, repeats=repeats)
            rows[name][f"latency_ms_{batch}"] = round(took, 3)
    return {
        "run": folder.resolve().name,
        "test_images": len(chosen),
        "calibration_images": exported.calibration_images,
        "layers": exported.layers,
        "networks": rows,
        **environment(torch.device("cpu")),
    }


def _chosen(images: ImageSet, count: int) -> ImageSet:
    """Return so many images at even distances."""
    assert images.labels is not None
    places = [number * len(images) // count for number in range(count)]

    class Chosen:
        def images(self, positions: Any) -> Any:
            return images.load_many([places[position] for position in positions])

    return ImageSet(images.name, count, Chosen(), tuple(images.labels[place] for place in places), images.classes)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(measure(arguments.run, arguments.images), indent=1) + "\n")


if __name__ == "__main__":
    main()
