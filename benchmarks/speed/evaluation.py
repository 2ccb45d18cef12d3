"""``netgraft evaluate`` on 10,000 images, decoding included, against a bare loop over tensors in memory."""

from __future__ import annotations

import torch
from timm.data import resolve_model_data_config

from benchmarks.speed.timing import median, ratio, seconds, side_by_side, write
from benchmarks.studies.cifar_task import TEACHER, WEIGHTS, source, teacher
from netgraft.data.loader import eval_loader
from netgraft.data.sources import data_root
from netgraft.jobs.evaluate import evaluate
from netgraft.training.runner import Runner


def main() -> None:
    """Measure and write the result file."""
    device = Runner().fabric.device
    model = teacher().eval().to(device)
    batches = [images for images, _ in eval_loader(source().test_or_all(), resolve_model_data_config(model))]

    def bare() -> None:
        with torch.inference_mode():
            for images in batches:
                model(images.to(device).contiguous(memory_format=torch.channels_last))

    weights = data_root() / WEIGHTS
    measured = side_by_side(
        {
            "netgraft evaluate": lambda: seconds(lambda: evaluate(TEACHER, "cifar10-jpeg", weights=weights)),
            "bare loop": lambda: seconds(bare),
        }
    )
    write(
        "evaluation",
        {
            "seconds": measured,
            "medians": {name: median(values) for name, values in measured.items()},
            "ratios": {"evaluation": ratio(measured, "netgraft evaluate", "bare loop")},
            "targets": {"evaluation": 1.1},
        },
    )


if __name__ == "__main__":
    main()
