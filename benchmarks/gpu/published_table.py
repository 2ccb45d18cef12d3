"""The published table: all numbers of shots and subsets of the default, cell by cell, by ``netgraft benchmark``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.boxes import INTERRUPTED, ROOT
from benchmarks.gpu.result_file import PartResult, Setting
from netgraft.errors import InterruptedRunError, RunError
from netgraft.experiments.results import ResultStore
from netgraft.experiments.specification import Experiment

TABLE, ROW = ROOT / "benchmarks" / "experiments" / "netgraft-cifar10.toml", "default"
"""The experiment, and the row of it that is computed: a cell is one of ``benchmarks/results/netgraft-cifar10``."""

REHEARSAL = ROOT / "benchmarks" / "gpu" / "rehearsal.toml"

FIGURES = ("student_top1", "gap", "agreement", "seconds")

CORES_OF_A_CELL = 3


def measure(setting: Setting, result: PartResult) -> None:
    """Compute the cells that are missing, and say what those that are there came to."""
    experiment = REHEARSAL if setting.tiny else TABLE
    store = ResultStore(setting.out / experiment.stem)
    workers = max(1, (os.cpu_count() or 1) // CORES_OF_A_CELL)
    command = [sys.executable, "-P", "-m", "netgraft", "benchmark", str(experiment), "--out", str(store.folder)]
    command += ["--only", ROW, "--workers", str(workers), "--device", setting.device, "--quiet"]
    process = subprocess.Popen(command)  # nosec B603  # nothing comes from outside
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        code = process.wait()
    finally:
        for name, value in summary(experiment, store).items():
            result.put(name, value)
        result.put("workers", workers, dtype="bf16")
    if code == INTERRUPTED:
        raise InterruptedRunError("the grid was asked to stop")
    if code != 0:
        raise RunError(f"the grid ended with exit code {code}; it has said why")


def summary(experiment: Path, store: ResultStore) -> dict[str, Any]:
    """Return how many cells are finished, of how many, and the mean figures by the number of shots.

    Args:
        experiment: Its file.
        store: Folder of the cells' results.
    """
    cells = [cell for cell in Experiment.load(experiment).cells if cell.row == ROW]
    found = [done for cell in cells if (done := store.find(cell)) is not None]
    by_shots: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for done in found:
        by_shots[done["shots"]].append(done)
    rows = {str(shots): {"subsets": len(those), **_means(those)} for shots, those in sorted(by_shots.items())}
    return {"cells": len(found), "of": len(cells), "by shots": rows}


def _means(those: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: round(sum(each[name] for each in those) / len(those), 4) for name in FIGURES}
