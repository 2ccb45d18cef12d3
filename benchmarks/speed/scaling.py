"""Time and memory as the number of images grows from 10 to 10,000, under a stated cap for the cache.

Each size runs in a process of its own, whose peak memory is read at its end.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from benchmarks.speed.timing import median, seconds, side_by_side, write
from benchmarks.studies.cifar_task import task
from netgraft.training.runner import Runner

SHOTS = (1, 10, 100, 1000)

CACHE_GIB = 0.03

STEPS = "40"


def one(shots: int) -> None:
    """Prepare and run one size; print seconds and peak MiB."""

    def run() -> None:
        prepared = task(
            shots=shots,
            preset="default",
            settings={"block_steps": STEPS, "join_steps": STEPS},
            runner=Runner(cache_gib=CACHE_GIB),
        )
        prepared.runner.run(prepared.plan, prepared.views)

    task(shots=1)  # data set and teacher are opened once, before
    before = _peak()
    print(json.dumps({"seconds": seconds(run), "mib": _peak() - before}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and write the result file."""
    memory: dict[str, list[float]] = {str(shots): [] for shots in SHOTS}

    def run(shots: int) -> float:
        command = [sys.executable, "-m", "benchmarks.speed.scaling", str(shots)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # nosec B603  # netgraft
        found = json.loads(output.splitlines()[-1])
        memory[str(shots)].append(round(found["mib"], 1))
        return found["seconds"]

    measured = side_by_side({str(shots): lambda shots=shots: run(shots) for shots in SHOTS})  # type: ignore[misc]
    write(
        "growth",
        {
            "task": f"cifar10-jpeg, VGG16 to half, preset default with {STEPS} steps a phase, images a class",
            "cache_gib": CACHE_GIB,
            "seconds": measured,
            "mib_above_start": memory,
            "medians": {
                **{f"seconds, {name} a class": median(values) for name, values in measured.items()},
                **{f"MiB, {name} a class": median(values) for name, values in memory.items()},
            },
        },
    )


if __name__ == "__main__":
    one(int(sys.argv[1])) if len(sys.argv) > 1 else main()
