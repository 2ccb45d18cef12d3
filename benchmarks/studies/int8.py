"""What 8 bits cost: accuracy, agreement, file and milliseconds of a run's student in float and in 8 bits, side by side.

    netgraft distill --data cifar10-jpeg --teacher cifar_vgg16_bn \
        --teacher-weights cifar_vgg16_bn.cifar10-jpeg.safetensors --shots 10 \
        --student cifar_vgg16_bn_half --steps 0 --out vgg
    netgraft distill --data imagenet1000 --teacher tf_efficientnet_lite0 \
        --teacher-weights tf_efficientnet_lite0.imagenet.safetensors --shots 1 --keep macs=0.75 --steps 0 --out lite0
    python -m benchmarks.studies.int8 vgg benchmarks/results/int8/cifar_vgg16_bn_half.json --train-steps 200
    python -m benchmarks.studies.int8 lite0 benchmarks/results/int8/tf_efficientnet_lite0-macs=0.75.json \
        --images 1000
    python -m benchmarks.studies.int8 table
"""

from __future__ import annotations

import argparse
import json
import sys
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

RESULTS = Path(__file__).parents[1] / "results" / "int8"

NETWORKS = {
    "pytorch": "PyTorch",
    "onnx": "ONNX, float",
    "int8": "ONNX, 8 bits",
    "trained": "ONNX, 8 bits, {} steps through fake quantisation",
}
"""Rows of a student, as they are called in files and in the table."""


def measure(folder: Path, images: int, train_steps: int = 0) -> dict[str, Any]:
    """Export a run's student to ONNX in float and in 8 bits, and run PyTorch and both files on the same test images.

    Args:
        folder: Of the run, whose photographs are the calibration.
        images: Of the test set, at even distances.
        train_steps: Of distillation through fake quantisation; none is tried if 0.
    """
    student, found = load_student(folder), find_photographs(folder)
    if found is None or found.others is None:
        raise SystemExit(f"{folder} is no run whose data is still there, with a test set")
    config = resolve_model_data_config(student)
    matched = match_classes(found.others, student, name=str(folder)).images
    with tempfile.TemporaryDirectory() as scratch:
        # all layers in 8 bits: the test images choose nothing
        exported = export_int8(student, Path(scratch, "int8.onnx"), calibration=found.few)
        trained = (
            export_int8(student, Path(scratch, "trained.onnx"), calibration=found.few, train_steps=train_steps)
            if train_steps
            else None
        )
    networks = {
        "pytorch": exported.float_export.model,
        "onnx": exported.float_export.opened,
        "int8": exported.opened,
        **({} if trained is None else {"trained": trained.opened}),
    }
    tested = chosen(matched, images)
    logits = {name: predictions(network, tested, config, SilentReporter()) for name, network in networks.items()}
    rows = {
        name: {
            "top1": round(top1(found_logits, labels), 4),
            "agreement": round(agreement(found_logits, logits["pytorch"][0]), 4),
        }
        for name, (found_logits, labels) in logits.items()
    }
    rows["onnx"]["bytes"], rows["int8"]["bytes"] = exported.float_export.bytes, exported.bytes
    if trained is not None:
        rows["trained"]["bytes"] = trained.bytes
    # side by side, so that other work on the machine meets all of them
    for batch, repeats in LATENCY_BATCHES.items():
        for name, network in networks.items():
            took = latency(network, exported.float_export.input_size, batch, repeats=repeats)
            rows[name][f"latency_ms_{batch}"] = round(took, 3)
    return {
        "run": folder.resolve().name,
        "test_images": len(tested),
        "calibration_images": exported.calibration_images,
        "layers": exported.layers,
        **({"train_steps": train_steps} if train_steps else {}),
        "networks": rows,
        **environment(torch.device("cpu")),
    }


def chosen(images: ImageSet, count: int) -> ImageSet:
    """Return so many images at even distances."""
    assert images.labels is not None
    places = [number * len(images) // count for number in range(count)]

    class Chosen:
        def images(self, positions: Any) -> Any:
            return images.load_many([places[position] for position in positions])

    return ImageSet(images.name, count, Chosen(), tuple(images.labels[place] for place in places), images.classes)


def table(folder: Path = RESULTS) -> str:
    """Return a line for each network of each student, in Markdown."""
    lines = [
        "| student | network | top-1 % | the float student's answer % | file, MB | of the float one | ms at batch 64 |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = found["networks"]["onnx"]["bytes"]
        for number, (name, row) in enumerate(found["networks"].items()):
            student = f"{path.stem}, {found['test_images']:,} test images" if number == 0 else ""
            size = f"{row['bytes'] / 1e6:.2f} | {row['bytes'] / whole:.2f}" if "bytes" in row else " | "
            shown = f"{row['top1']:.2f} | {row['agreement']:.2f} | {size} | {row['latency_ms_64']:,.0f}"
            lines.append(f"| {student} | {NETWORKS[name].format(found.get('train_steps'))} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    if sys.argv[1:] == ["table"]:
        print(table())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--train-steps", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        arguments.out, json.dumps(measure(arguments.run, arguments.images, arguments.train_steps), indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
