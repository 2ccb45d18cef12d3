"""Compute the cells of an experiment, each in a process of its own, several side by side."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from netgraft.errors import RequestError, RunError
from netgraft.experiments.results import ResultStore
from netgraft.experiments.specification import Cell
from netgraft.jobs.run_folder import RunFolder, RunFolderBusyError

PREDICTIONS = "answers"

INTERRUPTED = 130

PATIENCE = 60.0  # seconds that a cell has to save itself before it is killed

LOOK_EVERY = 0.2  # seconds between two looks at whether to stop

LAST_WORDS = 20  # lines of a failed process that are kept


class Observer(Protocol):
    """Is told what happens."""

    def started(self, cell: Cell) -> None:
        """A process begins, or goes on, with ``cell``."""
        ...

    def progressed(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """The process has said something; see :class:`netgraft.cli.progress_display.JsonReporter`."""
        ...

    def finished(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """The result is written."""
        ...

    def failed(self, cell: Cell, reason: str) -> None:
        """The process ended without a result."""
        ...

    def left(self, cell: Cell, reason: str) -> None:
        """The cell is left as it is: interrupted, or in the hands of another command."""
        ...


@dataclass(frozen=True)
class Grid:
    """Computes cells.

    Attributes:
        results: Where finished cells go, and where unfinished ones wait.
        workers: How many cells run side by side; they share the cores evenly.
        extra: Arguments of ``netgraft distill`` that don't decide the result, such as ``--device``.
    """

    results: ResultStore
    workers: int = 1
    extra: Sequence[str] = ()

    def pending(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells without a result.

        Raises:
            RequestError: A result is damaged, or was computed with other options.
        """
        return [cell for cell in cells if self.results.find(cell) is None]

    def run(self, cells: Sequence[Cell], observer: Observer, stop: Callable[[], bool]) -> None:
        """Compute cells until all are done or ``stop`` says yes; then running ones save themselves."""
        crew = WorkerPool(self, list(cells))
        threads = [threading.Thread(target=crew.work, daemon=True) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) or not crew.said.empty():
                if stop():
                    crew.stop()
                with suppress(queue.Empty):
                    what, *facts = crew.said.get(timeout=LOOK_EVERY)
                    getattr(observer, what)(*facts)
        finally:
            crew.stop()
            for thread in threads:
                thread.join()

    def command(self, cell: Cell) -> list[str]:
        """Return the command that computes a cell."""
        folders = ["--out", str(self.results.work(cell)), "--keep-answers", str(self.results.scratch / PREDICTIONS)]
        # -P: what lies in the current folder is not what is installed
        start = [sys.executable, "-P", "-m", "netgraft.cli.main"]
        return [*start, *cell.arguments(), *folders, "--resume", "--json", *self.extra]


@dataclass
class WorkerPool:
    """Threads that take cells from one list, and what they have to say."""

    grid: Grid
    waiting: list[Cell]
    said: queue.SimpleQueue[tuple[Any, ...]] = field(default_factory=queue.SimpleQueue)
    running: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> None:
        """Compute one cell after another."""
        while (cell := self._next()) is not None:
            try:
                self._compute(cell)
            except RunFolderBusyError:
                self.said.put(("left", cell, "another command is computing it"))
            except (RunError, RequestError, OSError) as error:
                self.said.put(("failed", cell, str(error)))

    def stop(self) -> None:
        """Let running cells save themselves; a second signal would make them leave at once."""
        with self.lock:
            if self.stopping:
                return
            self.stopping = True
            for process in self.running.values():
                process.send_signal(signal.SIGINT)

    def _next(self) -> Cell | None:
        with self.lock:
            return self.waiting.pop(0) if self.waiting and not self.stopping else None

    def _compute(self, cell: Cell) -> None:
        results = self.grid.results
        folder = RunFolder(results.work(cell))
        if folder.is_locked():
            raise RunFolderBusyError
        process = self._start(cell)
        if process is None:
            return
        self.said.put(("started", cell))
        words = self._listen(cell, process)
        if process.returncode == INTERRUPTED and self.stopping:
            self.said.put(("left", cell, "interrupted; it goes on when the command is given again"))
            return
        if process.returncode == 0:
            with folder.lock():
                result = folder.result()
                # a second command that began with the cell at the same moment may have stored it
                stored = results.find(cell) if result is None else results.store(cell, result)
            if stored is not None:
                self.said.put(("finished", cell, stored))
                return
        elif folder.is_locked():
            raise RunFolderBusyError
        self.said.put(("failed", cell, _reason(process.returncode, words)))

    def _start(self, cell: Cell) -> subprocess.Popen[str] | None:
        # what PyTorch would use here, which a CPU affinity and OMP_NUM_THREADS bound
        threads = str(max(1, torch.get_num_threads() // self.grid.workers))
        with self.lock:
            if self.stopping:
                return None
            process = subprocess.Popen(
                self.grid.command(cell),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on once
            )
            self.running[process.pid] = process
        return process

    def _listen(self, cell: Cell, process: subprocess.Popen[str]) -> list[str]:
        """Pass on what a process says until it ends; return its last words that are no events."""
        words: deque[str] = deque(maxlen=LAST_WORDS)
        assert process.stderr is not None
        watch = threading.Thread(target=self._lose_patience, args=[process], daemon=True)
        watch.start()
        with process.stderr as lines:
            for line in lines:
                try:
                    self.said.put(("progressed", cell, dict(json.loads(line))))
                except (ValueError, TypeError):
                    words.append(line.rstrip())
        process.wait()
        with self.lock:
            del self.running[process.pid]
        return list(filter(None, words))

    def _lose_patience(self, process: subprocess.Popen[str]) -> None:
        """Kill a process that was asked to stop and doesn't."""
        while not self.stopping:
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY)
                return
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def _reason(code: int, words: Sequence[str]) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; if it ran out of memory, use fewer --workers"
    said = words[-1].removeprefix("netgraft: ") if words else "it said nothing"
    return f"{said} (exit code {code})"
