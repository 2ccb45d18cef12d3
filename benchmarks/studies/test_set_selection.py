"""How much is gained by choosing the best moment on the test set, which the protocol here forbids.

    python -m benchmarks.studies.test_set_selection          # finished runs are not computed again
    python -m benchmarks.studies.test_set_selection table    # as Markdown

The published code tests after every epoch of the last join and reports the best. Here the test set is looked at as
often in the last phase of a run, and nothing but these files ever learns of it. ``netgraft distill --select
best-on-test`` keeps the student of the best look.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.studies.cifar_task import source, task
from netgraft.data.image_set import ImageSet
from netgraft.distillation import Distillation
from netgraft.jobs.selection import Watcher
from netgraft.reports.formats import markdown
from netgraft.reports.summaries import Statistic
from netgraft.reports.tables import Column, Line, Table
from netgraft.training.runner import Runner

RESULTS = Path(__file__).parents[1] / "results" / "selection"

LOOKS = 100
"""At the test set in the last phase; the published settings for CIFAR-10 have so many epochs there."""

STARTS = {"reference": "random", "default": "slice"}

SHOTS = (10, 1)

SUBSETS = (0, 1, 2)


def measure(prepared: Distillation, test: ImageSet, looks: int = LOOKS) -> dict[str, Any]:
    """Carry out a run and return what was seen, the last of it and the best of it in percent."""
    watcher = Watcher(prepared, test, looks)
    prepared.train(after_step=watcher)
    seen = list(watcher.seen.values())
    return {"last": seen[-1], "best": max(seen), "inflation": round(max(seen) - seen[-1], 4), "seen": seen}


def run(preset: str, shots: int, seed: int) -> None:
    """Compute one run, unless its file is there."""
    path = RESULTS / f"{preset}-{shots}shot-subset{seed}.json"
    if path.exists():
        return
    prepared = task(shots=shots, preset=preset, init=STARTS[preset], runner=Runner(seed=seed, precision="bf16"))
    test = source().test
    assert test is not None
    result = {"preset": preset, "shots": shots, "subset": seed, **measure(prepared, test)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"{path.stem}: last {result['last']}, best {result['best']}", flush=True)


def table(folder: Path = RESULTS) -> str:
    """Return a line for each preset and number of shots: percent and points over the subsets."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    columns = (
        Column("preset", "preset"),
        Column("shots", "shots", "number"),
        Column("last", "last iterate", "statistic"),
        Column("best", "best of the looks", "statistic"),
        Column("inflation", "gained", "statistic"),
        Column("n", "n", "number"),
    )
    lines = []
    for preset, shots in product(STARTS, SHOTS):
        some = [result for result in results if (result["preset"], result["shots"]) == (preset, shots)]
        figures = (Statistic.of(result[key] for result in some) for key in ("last", "best", "inflation"))
        lines += [Line((preset, shots, *figures, len(some)), 0)] if some else []
    note = "Top-1 in percent, gained in points: mean ± sample standard deviation over n subsets."
    return markdown(Table("", columns, tuple(lines), notes=(note,)))


def main(arguments: Sequence[str]) -> None:
    """Run everything, or print what there is."""
    if arguments == ["table"]:
        print(table())
        return
    if arguments:
        sys.exit(f"expected nothing or 'table', got {' '.join(arguments)}")
    for seed, shots, preset in product(SUBSETS, SHOTS, STARTS):
        run(preset, shots, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
