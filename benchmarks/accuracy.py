"""Few-shot accuracy on CIFAR-10 (JPEG) from a random start, and of another family.

    python -m benchmarks.accuracy                          # every row below; finished ones are not computed again
    python -m benchmarks.accuracy cifar10-jpeg             # one data set
    python -m benchmarks.accuracy cifar10-jpeg/random-10   # one row

One result file a row and subset, in benchmarks/results; netgraft table prints them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cifar import TEACHER, WEIGHTS
from netgraft.data import data_root
from netgraft.jobs import DistillJob

RESULTS = Path(__file__).parent / "results"
STUDENT = "cifar_vgg16_bn_half"


@dataclass(frozen=True)
class Row:
    """One line of the table: the same run on several subsets."""

    data: str
    name: str
    shots: int
    student: str = ""
    method: str = "netgraft"
    preset: str = "default"
    init: str = "auto"
    seeds: Sequence[int] = (0, 1, 2)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Data set and name."""
        return f"{self.data}/{self.name}"


CIFAR = "cifar10-jpeg"
ROWS = (
    Row(CIFAR, "random-10", 10, init="random", seeds=(0,)),
    # nothing in common with the teacher; fewer steps than the default, which would take a quarter of an hour
    Row(CIFAR, "mobilenetv2-10", 10, "cifar_mobilenetv2", seeds=(0,), settings={"join_steps": "300"}),
)


def run(row: Row, seed: int) -> None:
    """Compute one cell, unless its file is there."""
    path = RESULTS / f"{row.path}-seed{seed}.json"
    if path.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        job = DistillJob(
            data=row.data,
            teacher=TEACHER,
            teacher_weights=data_root() / WEIGHTS,
            student=row.student or STUDENT,
            shots=row.shots,
            method=row.method,
            preset=row.preset,
            init=row.init,
            settings=row.settings,
            seed=seed,
            out=Path(folder) / "run",
        )
        result = job.run()
    # where it was computed says nothing to a reader
    result.pop("run_folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{row.path} seed {seed}: student {result['student_top1']}, gap {result['gap']}", flush=True)


def main(names: Sequence[str]) -> None:
    """Run the named rows or data sets, or all of them."""
    unknown = [name for name in names if not any(name in {row.data, row.path} for row in ROWS)]
    if unknown:
        sys.exit(f"no row {', '.join(unknown)}; choose from {', '.join(row.path for row in ROWS)}")
    for row in ROWS:
        if not names or {row.data, row.path} & set(names):
            for seed in row.seeds:
                run(row, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
