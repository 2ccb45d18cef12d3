"""How long until a student is usable: seconds of ``netgraft distill``, from images to a gap of half a point.

The published loop never gets there (``published``). The shortest of a few lengths of training whose student ends near
enough counts; what is timed is the whole command, with the reading of the images and all measuring. The test set is a
clock here, and chooses nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed.timing import median, seconds, write
from benchmarks.studies.cifar_task import TEACHER, WEIGHTS
from netgraft.errors import RunError

GAP = 0.5  # points

STEPS = (0, 100, 300, 1000)

REPEATS = 3

TARGET = 120.0  # seconds, on two cores

TASK = (
    *("distill", "--data", "cifar10-jpeg", "--teacher", TEACHER, "--teacher-weights", WEIGHTS),
    *("--student", "cifar_vgg16_bn_half", "--shots", "10", "--quiet"),
)


def distilled(steps: int) -> tuple[float, float]:
    """Return the seconds of the whole command with so many steps of training, and the gap of its student in points."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-P", "-m", "netgraft", *TASK, "--steps", str(steps), "--out", str(run)]
        took = seconds(lambda: subprocess.run(command, check=True, capture_output=True))  # nosec B603  # netgraft
        return took, float(json.loads((run / "result.json").read_text(encoding="utf-8"))["gap"])


def main() -> None:
    """Measure and write the result file.

    Raises:
        RunError: No length of training was enough.
    """
    for steps in STEPS:
        measured = [distilled(steps) for _ in range(REPEATS)]
        gap = max(gap for _, gap in measured)
        print(f"  {steps} steps: {[round(took, 1) for took, _ in measured]} s, gap {gap:.2f}", flush=True)
        if gap <= GAP:
            break
    else:
        raise RunError(f"no student came within {GAP} points of its teacher in {STEPS[-1]} steps")
    name = f"seconds until a gap of {GAP} points"
    write(
        "usable",
        {
            "seconds": {name: [took for took, _ in measured]},
            "medians": {name: median([took for took, _ in measured])},
            "targets": {name: TARGET},
            "steps": steps,
            "gap": gap,
        },
    )


if __name__ == "__main__":
    main()
