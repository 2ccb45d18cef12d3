"""Compute the cells of an experiment, each in a process of its own, several side by side."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from netgraft.errors import RequestError, RunError
from netgraft.experiments.results import CellBusyError, ResultStore
from netgraft.experiments.specification import Cell
from netgraft.jobs.run_folder import RunFolder, RunFolderBusyError

PREDICTIONS = "answers"  # the folder's name on disk

INTERRUPTED = 130

STOP_TIMEOUT = 60.0  # seconds that a cell has to save itself before it is killed

POLL_INTERVAL = 0.2  # seconds between two looks at whether to stop

KEPT_LINES = 20  # of what a process last wrote to stderr


class Observer(Protocol):
    """Is told what happens."""

    def started(self, cell: Cell) -> None:
        """A process begins, or goes on, with ``cell``."""
        ...

    def waiting(self, cell: Cell) -> None:
        """A process that an earlier, killed command left behind is still at work on ``cell``."""
        ...

    def progressed(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """The process reports; see :class:`netgraft.cli.progress_display.JsonReporter`."""
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
class Started:
    """See :meth:`Observer.started`."""

    cell: Cell


@dataclass(frozen=True)
class Waiting:
    """See :meth:`Observer.waiting`."""

    cell: Cell


@dataclass(frozen=True)
class Progressed:
    """See :meth:`Observer.progressed`."""

    cell: Cell
    event: Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """See :meth:`Observer.finished`."""

    cell: Cell
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """See :meth:`Observer.failed`."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class Left:
    """See :meth:`Observer.left`."""

    cell: Cell
    reason: str


Event = Started | Waiting | Progressed | Finished | Failed | Left


def tell(observer: Observer, event: Event) -> None:
    """Call the observer's method for an event."""
    match event:
        case Started(cell):
            observer.started(cell)
        case Waiting(cell):
            observer.waiting(cell)
        case Progressed(cell, report):
            observer.progressed(cell, report)
        case Finished(cell, result):
            observer.finished(cell, result)
        case Failed(cell, reason):
            observer.failed(cell, reason)
        case Left(cell, reason):
            observer.left(cell, reason)


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
        pool = WorkerPool(self, list(cells))
        threads = [threading.Thread(target=pool.work, daemon=True) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) or not pool.events.empty():
                if stop():
                    pool.stop()
                with suppress(queue.Empty):
                    tell(observer, pool.events.get(timeout=POLL_INTERVAL))
        finally:
            pool.stop()
            for thread in threads:
                thread.join()

    def command(self, cell: Cell) -> list[str]:
        """Return the command that computes a cell."""
        folders = ["--out", str(self.results.work(cell)), "--keep-answers", str(self.results.scratch / PREDICTIONS)]
        # -P: what lies in the current folder is not what is installed
        start = [sys.executable, "-P", "-m", "netgraft"]
        return [*start, *cell.arguments(), *folders, "--resume", "--json", *self.extra]


@dataclass
class WorkerPool:
    """Threads that take cells from one list, each with a process for its cell.

    Attributes:
        grid: Whose cells they are.
        waiting: Cells that nobody has taken yet.
        events: What happened, in order, for the thread that started the pool.
        running: Processes by their id.
        stopping: No further cell is to be taken.
        lock: Of ``waiting``, ``running`` and ``stopping``.
    """

    grid: Grid
    waiting: list[Cell]
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    running: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> None:
        """Compute one cell after another."""
        while (cell := self._next()) is not None:
            try:
                self._compute(cell)
            except (CellBusyError, RunFolderBusyError):
                self.events.put(Left(cell, "another command is computing it"))
            except (RunError, RequestError, OSError) as error:
                self.events.put(Failed(cell, str(error)))

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
        with results.lock(cell):
            # another command may have stored it since this one looked first
            stored = results.find(cell)
            if stored is None:
                self._run(cell)
            else:
                self.events.put(Finished(cell, stored))

    def _run(self, cell: Cell) -> None:
        """Let a process come to the cell's result, and store it. The caller holds the cell's lock."""
        results = self.grid.results
        folder = RunFolder(results.work(cell))
        self._wait_for_orphan(cell, folder)
        process = self._start(cell)
        if process is None:
            return
        self.events.put(Started(cell))
        last_lines = self._pass_on_reports(cell, process)
        if process.returncode == INTERRUPTED and self.stopping:
            self.events.put(Left(cell, "interrupted; it goes on when the command is given again"))
            return
        if process.returncode == 0:
            with folder.lock():
                result = folder.result()
                stored = None if result is None else results.store(cell, result)
            if stored is not None:
                self.events.put(Finished(cell, stored))
                return
        elif folder.is_locked():
            raise RunFolderBusyError
        self.events.put(Failed(cell, _reason(process.returncode, last_lines)))

    def _wait_for_orphan(self, cell: Cell, folder: RunFolder) -> None:
        """Wait until a process that outlives its command leaves the cell's folder: nothing is computed twice."""
        if not folder.is_locked():
            return
        self.events.put(Waiting(cell))
        while not self.stopping and folder.is_locked():
            time.sleep(POLL_INTERVAL)

    def _start(self, cell: Cell) -> subprocess.Popen[str] | None:
        # what PyTorch would use here, which a CPU affinity and OMP_NUM_THREADS bound
        threads = str(max(1, torch.get_num_threads() // self.grid.workers))
        with self.lock:
            if self.stopping:
                return None
            # no shell reads what an experiment says: each part is one argument, whose value its option checks
            process = subprocess.Popen(  # nosec B603
                self.grid.command(cell),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on once
            )
            self.running[process.pid] = process
        return process

    def _pass_on_reports(self, cell: Cell, process: subprocess.Popen[str]) -> list[str]:
        """Make events of what a process writes to stderr until it ends; return its last lines that are none."""
        last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        assert process.stderr is not None
        threading.Thread(target=self.kill_after_timeout, args=[process], daemon=True).start()
        with process.stderr as lines:
            for line in lines:
                try:
                    self.events.put(Progressed(cell, dict(json.loads(line))))
                except (ValueError, TypeError):
                    last_lines.append(line.rstrip())
        process.wait()
        with self.lock:
            del self.running[process.pid]
        return list(filter(None, last_lines))

    def kill_after_timeout(self, process: subprocess.Popen[str]) -> None:
        """Wait until a process ends; kill it where it was asked to stop and doesn't within ``STOP_TIMEOUT``."""
        while not self.stopping:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_INTERVAL)
                return
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()


def _reason(code: int, last_lines: Sequence[str]) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; if it ran out of memory, use fewer --workers"
    reason = last_lines[-1].removeprefix("netgraft: ") if last_lines else "it said nothing"
    return f"{reason} (exit code {code})"
