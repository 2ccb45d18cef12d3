"""Compute a grid here and on a local cluster of three nodes, of which one is killed half-way, and compare.

python -m benchmarks.ray_grid stand-ins    # 200 processes that wait a second: what a cell costs beside its process
python -m benchmarks.ray_grid runs         # 200 small runs of netgraft distill: hours where little is free
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.ray_grid.stand_in import SECONDS, StandIn
from netgraft import __version__
from netgraft.evaluation.environment import processor
from netgraft.experiments.cell_process import CellRun, Ended, Tell
from netgraft.experiments.ray_cluster import RayCluster, connected
from netgraft.experiments.results import ResultStore
from netgraft.experiments.scheduler import Compute, Executor, Grid, on_this_machine
from netgraft.experiments.specification import Cell

RESULTS = Path(__file__).parents[1] / "results" / "ray-grid"

NODES = 3

CELLS = 200

EXPERIMENT = """
title = "Small cells"
[common]
data = "digits"
shots = 1
precision = "32"
views = "plain"
subsets = {subsets}
[[run]]
method = "none"
settings = {{ steps = 1 }}
"""


@dataclass
class Count:
    """An observer that counts, and does something once half of the cells are finished and another one computes."""

    half: int
    at_half: Callable[[], None]
    started_cells: Counter[str] = field(default_factory=Counter)
    finished_cells: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    computing: set[str] = field(default_factory=set)
    waits: bool = True

    def started(self, cell: Cell) -> None:
        """Count it."""
        self.started_cells[cell.name] += 1

    def waiting(self, cell: Cell) -> None:
        """Nothing to count."""

    def progressed(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """Look whether the time has come: after a report as after an end, since either may be the last of the two."""
        self.computing.add(cell.name)
        self._look()

    def finished(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Count it."""
        self.finished_cells[cell.name] += 1
        self.computing.discard(cell.name)
        self._look()

    def _look(self) -> None:
        if self.waits and self.computing and self.finished_cells.total() >= self.half:
            self.waits = False
            self.at_half()

    def failed(self, cell: Cell, reason: str) -> None:
        """Keep the reason."""
        self.failures[cell.name] = reason
        self.computing.discard(cell.name)

    def left(self, cell: Cell, reason: str) -> None:
        """Keep the reason."""
        self.failures[cell.name] = reason
        self.computing.discard(cell.name)


def measured(executor: Executor, overheads: dict[str, float], *, stand_ins: bool) -> Executor:
    """Measure how long each cell takes beyond its process, and put a stand-in in the process's place if need be."""

    @asynccontextmanager
    async def opened(stopping: asyncio.Event) -> AsyncIterator[Compute]:
        async with executor(stopping) as compute:

            async def timed(run: CellRun, tell: Tell) -> Ended | None:
                began = time.perf_counter()
                ended = await compute(StandIn(**vars(run)) if stand_ins else run, tell)
                if ended is not None:
                    overheads[run.name] = time.perf_counter() - began - ended.seconds
                return ended

            yield timed

    return opened


def compute(
    results: ResultStore,
    cells: Sequence[Cell],
    executor: Executor,
    *,
    stand_ins: bool,
    at_half: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compute a grid; return figures about it."""
    overheads: dict[str, float] = {}
    before_half: list[float] = []

    def halved() -> None:
        # afterwards cells wait for a place on fewer nodes
        before_half.extend(overheads.values())
        at_half()

    count = Count(len(cells) // 2, halved)
    began = time.perf_counter()
    grid = Grid(results, NODES, threads=1, executor=measured(executor, overheads, stand_ins=stand_ins))
    grid.run(cells, count, lambda: False)
    counted = before_half or list(overheads.values())  # of grids too small to be halved
    computed = results.scratch / "computed"
    twice = {path.name for path in computed.glob("*") if len(path.read_text().splitlines()) > 1}
    twice |= {name for name, times in count.finished_cells.items() if times > 1}
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "lost": sorted({cell.name for cell in cells if results.find(cell) is None}),
        "twice": sorted(twice),
        "failures": count.failures,
        "started_again": sorted(name for name, times in count.started_cells.items() if times > 1),
        "overhead_cells": len(counted),
        "overhead_median": round(statistics.median(counted), 3),
        "overhead_mean": round(statistics.fmean(counted), 3),
        "overhead_largest": round(max(counted), 3),
    }


def untimed(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without what no two runs have alike."""
    return {name: value for name, value in result.items() if "seconds" not in name and "latency" not in name}


def compare(folder: Path, *, number: int, stand_ins: bool) -> dict[str, Any]:
    """Compute the same cells here and on a cluster; return figures about both."""
    source = folder / "small.toml"
    source.write_text(EXPERIMENT.format(subsets=list(range(number))))
    here, there = ResultStore(folder / "here"), ResultStore(folder / "there")
    here.claim(source)
    there.claim(source)
    cells = here.experiment().cells
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES)]
    try:
        with connected(cluster.address):
            executor = RayCluster(there.scratch / ".mark").executor
            on_cluster = compute(
                there,
                cells,
                executor,
                stand_ins=stand_ins,
                at_half=lambda: cluster.remove_node(nodes[0], allow_graceful=False),
            )
    finally:
        cluster.shutdown()
    alone = compute(here, cells, on_this_machine, stand_ins=stand_ins)
    pairs = [(here.find(cell), there.find(cell)) for cell in cells]
    same = sum(a is not None and b is not None and untimed(a) == untimed(b) for a, b in pairs)
    return {
        "name": "stand-ins" if stand_ins else "runs",
        "cells": number,
        "process_seconds": SECONDS if stand_ins else None,
        "nodes": NODES,
        "killed_nodes": 1,
        "same_files": same,
        "cluster": on_cluster,
        "without": alone,
        "machine": processor(),
        "versions": {"netgraft": __version__, "ray": ray.__version__},
    }


def main() -> None:
    """Compare, and write a result file."""
    # otherwise Ray kills workers where other programs have taken the memory of the machine
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("stand-ins", "runs"))
    parser.add_argument("--cells", type=int, default=CELLS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(Path(folder), number=arguments.cells, stand_ins=arguments.kind == "stand-ins")
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    (RESULTS / f"{arguments.kind}.json").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
