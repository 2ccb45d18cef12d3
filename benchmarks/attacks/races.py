"""Processes that begin at the same moment: with one folder, with one file, with one grid."""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from netgraft.cli.main import run

from benchmarks.attacks.commands import Ended, Forked
from netgraft.errors import RequestError
from netgraft.experiments.cell_process import CellRun
from netgraft.experiments.scheduler import Grid
from netgraft.experiments.specification import Cell
from netgraft.files import write_text
from netgraft.jobs.run_folder import RunFolder

WAIT_SECONDS = 120
"""For the other processes to come to the barrier."""

CONFIG: dict[str, Any] = {"fingerprint": "a" * 64}


def at_once(count: int, work: Callable[[int, Callable[[], None]], int]) -> list[Ended]:
    """Let several processes do some work that begins, or goes on, at one moment.

    Args:
        count: Of processes.
        work: Takes the number of its process and a function that waits for all others; returns an exit code.
    """
    barrier = multiprocessing.get_context("fork").Barrier(count)

    def wait() -> None:
        barrier.wait(WAIT_SECONDS)

    def one(number: int) -> Callable[[], int]:
        return lambda: work(number, wait)

    return [process.wait() for process in [Forked(one(number)) for number in range(count)]]


def claims(folder: Path, *, processes: int, rounds: int) -> list[str]:
    """Let processes claim one new folder after another; return what was wrong: one of them must get each.

    The others are told that another run is at work there, or that there is one already.
    """

    def work(number: int, wait: Callable[[], None]) -> int:
        for turn in range(rounds):
            place = RunFolder(folder / str(turn))
            wait()
            try:
                with place.lock():
                    place.claim(CONFIG, resume=False)
                    print(turn)
            except RequestError as error:
                if "another run is at work" not in str(error) and "already holds a run" not in str(error):
                    raise
        return 0

    ended = at_once(processes, work)
    got = Counter(turn for each in ended for turn in each.printed.split())
    return [
        *(f"a process ended with {each}" for each in ended if each.code or each.said),
        *(f"folder {turn} was claimed {got[str(turn)]} times" for turn in range(rounds) if got[str(turn)] != 1),
        *(f"{path} is left" for path in folder.rglob(".*")),
    ]


def writes(folder: Path, *, processes: int, rounds: int) -> list[str]:
    """Let processes write one file again and again; return what was wrong: it must be one of theirs at any moment."""
    target, size = folder / "target", 2**16

    def work(number: int, wait: Callable[[], None]) -> int:
        wait()
        for _ in range(rounds):
            write_text(target, str(number) * size)
            found = target.read_text()
            if len(found) != size or len(set(found)) != 1:
                print(f"a mixture of {sorted(set(found))}, {len(found)} long")
        return 0

    ended = at_once(processes, work)
    left = [path.name for path in folder.iterdir() if path != target]
    return [*(f"a process ended with {each}" for each in ended if each != Ended(0, "", "")), *left]


GRID = """
title = "Raced for"
[common]
data = "digits"
shots = [1, 2]
[[run]]
method = "kd"
[[run]]
method = "none"
"""

_COUNTED = """
import json, os, sys, time
from pathlib import Path
from filelock import FileLock
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
with FileLock(folder / ".lock", blocking=False):
    number = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(number, (folder.name + chr(10)).encode())
    time.sleep(0.05)
    (folder / "result.json").write_text(json.dumps({"gap": 0.5, "student_top1": 50.0, "seconds": 0.1}))
"""
"""Stands for a run: holds the folder, writes down that it computes, and leaves a result."""


def doubled_grid(folder: Path, *, commands: int) -> list[str]:
    """Give one grid to several commands at once; return what was wrong.

    Every cell must be computed once, and a command that says how many cells are finished must count the files.
    """
    experiment, out, counted = folder / "raced.toml", folder / "out", folder / "computed"
    experiment.write_text(GRID)

    def command(run: CellRun) -> list[str]:
        return [sys.executable, "-P", "-c", _COUNTED, str(run.folder), str(counted)]

    look = Grid.pending

    def work(number: int, wait: Callable[[], None]) -> int:
        def pending(grid: Grid, cells: Sequence[Cell]) -> list[Cell]:
            found = look(grid, cells)
            if not seen:
                wait()  # all have seen what is missing before the first begins
                seen.append(True)
            return found

        seen: list[bool] = []
        setattr(Grid, "pending", pending)  # noqa: B010  # in this process alone
        setattr(CellRun, "command", command)  # noqa: B010
        return run(["benchmark", str(experiment), "--out", str(out)])

    ended = at_once(commands, work)
    times = Counter(counted.read_text().split())
    files = sorted(path.stem for path in out.glob("*.json"))
    wrong = [f"{cell} was computed {number} times" for cell, number in times.items() if number != 1]
    wrong += [] if len(files) == 4 and sorted(times) == files else [f"expected 4 results, got {files} of {times}"]
    wrong += [f"a command ended with {each}" for each in ended if each.code not in {0, 130} or "Traceback" in each.said]
    if not any(each.code == 0 for each in ended):
        wrong.append(f"no command says that all is done: {ended}")
    return wrong
