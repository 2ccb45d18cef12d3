"""How long one waits: for the help, and from the start of a job to its first training step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from benchmarks.speed.timing import median, seconds, side_by_side, write
from benchmarks.studies.cifar_task import TEACHER, WEIGHTS
from netgraft.data.sources import data_root
from netgraft.errors import InterruptedRunError
from netgraft.grafting.options import PairingOptions
from netgraft.jobs.distill import DistillJob
from netgraft.progress import SilentReporter


class FirstStep(SilentReporter):
    """Notes when the first step is done."""

    at = 0.0

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Remember the first call."""
        self.at = self.at or time.perf_counter()


def first_step() -> float:
    """Seconds from the start of ``netgraft distill`` on CIFAR-10, after the imports, to the end of the first step.

    From slices: a start in closed form is work of its own, which ``usable`` counts.
    """
    reporter, start = FirstStep(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        job = DistillJob(
            data="cifar10-jpeg",
            teacher=TEACHER,
            teacher_weights=data_root() / WEIGHTS,
            student="cifar_vgg16_bn_half",
            pairing=PairingOptions(init="slice"),
            out=Path(folder) / "run",
        )
        with suppress(InterruptedRunError):
            job.run(reporter, stop=lambda: bool(reporter.at))
    return reporter.at - start


def show_help() -> float:
    """Seconds of ``netgraft --help``."""
    command = [str(Path(sys.executable).with_name("netgraft")), "--help"]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True))  # nosec B603  # netgraft


def main() -> None:
    """Measure and write the result file."""
    measured = side_by_side({"netgraft --help": show_help, "start to first step": first_step})
    write(
        "startup",
        {
            "seconds": measured,
            "medians": {name: median(values) for name, values in measured.items()},
            "targets": {"netgraft --help": 0.2, "start to first step": 3.0},
        },
    )


if __name__ == "__main__":
    main()
