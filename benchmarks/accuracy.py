"""Few-shot accuracy on CIFAR-10 (JPEG) with the shared VGG16 teacher.

    python -m benchmarks.accuracy            # every row below; finished ones are not computed again
    python -m benchmarks.accuracy default-10 # some rows

One result file a row and subset, in benchmarks/results/cifar10-jpeg; benchmarks.table prints them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from netgraft.data import data_root
from netgraft.jobs import DistillJob
from netgraft.runner import Runner

RESULTS = Path(__file__).parent / "results" / "cifar10-jpeg"
TEACHER = "cifar_vgg16_bn"
WEIGHTS = "cifar_vgg16_bn.cifar10-jpeg.safetensors"


@dataclass(frozen=True)
class Row:
    """One line of the table: the same run on several subsets."""

    name: str
    shots: int
    student: str = "cifar_vgg16_bn_half"
    preset: str = "default"
    init: str = "auto"
    seeds: Sequence[int] = (0, 1, 2)
    settings: dict[str, str] = field(default_factory=dict)


ROWS = (
    Row("default-10", 10),
    Row("default-1", 1),
    Row("random-10", 10, init="random"),
    Row("reference-10", 10, preset="reference", init="random"),
    Row("reference-1", 1, preset="reference", init="random"),
    # nothing in common with the teacher; fewer steps than the default, which would take a quarter of an hour
    Row("mobilenetv2-10", 10, student="cifar_mobilenetv2", seeds=(0,), settings={"join_steps": "300"}),
)


def run(row: Row, seed: int) -> None:
    """Compute one cell, unless its file is there."""
    path = RESULTS / f"{row.name}-seed{seed}.json"
    if path.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        job = DistillJob(
            data="cifar10-jpeg",
            teacher=TEACHER,
            teacher_weights=data_root() / WEIGHTS,
            student=row.student,
            shots=row.shots,
            preset=row.preset,
            init=row.init,
            settings=row.settings,
            seed=seed,
            out=Path(folder) / "run",
            runner=Runner(precision="bf16-mixed"),
        )
        result = job.run()
    # where it was computed says nothing to a reader
    result.pop("run_folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{row.name} seed {seed}: student {result['student_top1']}, gap {result['gap']}", flush=True)


def main(names: Sequence[str]) -> None:
    """Run the named rows, or all of them."""
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        sys.exit(f"no row {', '.join(sorted(unknown))}; choose from {', '.join(row.name for row in ROWS)}")
    for row in ROWS:
        if not names or row.name in names:
            for seed in row.seeds:
                run(row, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
