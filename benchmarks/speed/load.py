"""Training beside another program that keeps all cores busy: as threads wait by themselves, and as netgraft's do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from benchmarks.speed.timing import median, ratio, side_by_side, write
from netgraft.training.threads import SAID as THREADS
from netgraft.training.waiting import SAID as WAITING

REPEATS = 3

TASK = (
    "distill",
    "--init",
    "slice",
    "--precision",
    "32",
    "--block-steps",
    "0",
    "--join-steps",
    "20",
    "--json",
    "--quiet",
)

BUSY = """
import torch
torch.set_num_threads({threads})
layer, images = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(16, 64, 32, 32)
with torch.no_grad():
    layer(images)
    print("busy", flush=True)
    while True:
        layer(images)
"""

# the command without its entry, which says how threads wait
BY_ITSELF = "import sys; from netgraft.cli.main import run_alone; sys.exit(run_alone(sys.argv[1:]))"


@contextmanager
def other_program(threads: int) -> Iterator[None]:
    """Keep so many threads of another process busy."""
    with subprocess.Popen(  # nosec B603  # a program of this file
        [sys.executable, "-c", BUSY.format(threads=threads)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def training(start: tuple[str, ...], said: Mapping[str, str], *, beside: bool) -> float:
    """Return the seconds of training that the digits run's twenty steps take.

    Args:
        start: The Python program that carries out the command, as arguments of the interpreter.
        said: Of threads and of how they wait, in the environment.
        beside: Whether another program keeps all cores busy.
    """
    environment = {name: value for name, value in os.environ.items() if name not in {*THREADS, *WAITING}}
    environment |= said
    with tempfile.TemporaryDirectory() as folder, other_program(torch.get_num_threads()) if beside else nullcontext():
        command = [sys.executable, "-P", *start, *TASK, "--out", str(Path(folder) / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)  # nosec B603
    return float(json.loads(done.stdout)["train_seconds"])


def main() -> None:
    """Measure and write the result file."""
    every = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    ways = {
        "PyTorch's waiting": (("-c", BY_ITSELF), every),
        "brief waiting": (("-m", "netgraft"), every),
        "one thread": (("-m", "netgraft"), {"OMP_NUM_THREADS": "1"}),
        "netgraft": (("-m", "netgraft"), {}),
    }
    measured = side_by_side(
        {
            f"{name}, {where}": partial(training, *way, beside=where == "beside")
            for where in ("alone", "beside")
            for name, way in ways.items()
        },
        REPEATS,
    )
    others = [name for name in ways if name != "netgraft"]
    write(
        "load",
        {
            "seconds": measured,
            "medians": {name: median(values) for name, values in measured.items()},
            "ratios": {
                f"{name} / netgraft, {where}": ratio(measured, f"{name}, {where}", f"netgraft, {where}")
                for where in ("alone", "beside")
                for name in others
            },
            "targets": {"PyTorch's waiting / netgraft, beside": 2},
        },
    )


if __name__ == "__main__":
    main()
