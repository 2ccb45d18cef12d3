"""Compute the cells of an experiment, each in a process of its own, several side by side."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from netgraft.errors import InterruptedRunError, RequestError, RunError
from netgraft.experiments import cell_process
from netgraft.experiments.cell_process import INTERRUPTED, POLL_INTERVAL, CellRun, Ended, Message, Tell
from netgraft.experiments.results import CellBusyError, ResultStore
from netgraft.experiments.specification import Cell
from netgraft.jobs.run_folder import RunFolder, RunFolderBusyError

PREDICTIONS = "answers"  # the folder's name on disk


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


Compute = Callable[[CellRun, Tell], Awaitable[Ended | None]]
"""Lets a process compute a cell, and says how it ended; see :func:`netgraft.experiments.cell_process.compute`."""

Executor = Callable[[asyncio.Event], AbstractAsyncContextManager[Compute]]
"""Where processes run: takes the event that is set when they are to save themselves."""


@asynccontextmanager
async def on_this_machine(stopping: asyncio.Event) -> AsyncIterator[Compute]:
    """Run the processes here. An :data:`Executor`."""

    async def compute(run: CellRun, tell: Tell) -> Ended | None:
        return await cell_process.compute(run, tell, stopping)

    yield compute


@dataclass(frozen=True)
class Grid:
    """Computes cells.

    Attributes:
        results: Where finished cells go, and where unfinished ones wait.
        workers: How many cells run side by side.
        extra: Arguments of ``netgraft distill`` that don't decide the result, such as ``--device``.
        threads: Of a cell; by default the workers share evenly what PyTorch would use here.
        executor: Where cells are computed.
    """

    results: ResultStore
    workers: int = 1
    extra: Sequence[str] = ()
    threads: int | None = None
    executor: Executor = on_this_machine

    def pending(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells without a result.

        Raises:
            RequestError: A result is damaged, or was computed with other options.
        """
        return [cell for cell in cells if self.results.find(cell) is None]

    def run(self, cells: Sequence[Cell], observer: Observer, stop: Callable[[], bool]) -> None:
        """Compute cells until all are done or ``stop`` says yes; then running ones save themselves.

        An exception out of ``stop``, such as ``KeyboardInterrupt``, kills them.
        """
        asyncio.run(self._compute_all(cells, observer, stop))

    async def _compute_all(self, cells: Sequence[Cell], observer: Observer, stop: Callable[[], bool]) -> None:
        stopping = asyncio.Event()

        async def work(waiting: Iterator[Cell]) -> None:
            for cell in waiting:
                if not stopping.is_set():
                    await self._compute(cell, observer, compute, stopping)

        async with self.executor(stopping) as compute:
            waiting = iter(cells)  # of all workers
            working = [asyncio.create_task(work(waiting)) for _ in range(min(self.workers, len(cells)))]
            left = set(working)
            while left:
                if stop():
                    stopping.set()
                ended, left = await asyncio.wait(left, timeout=POLL_INTERVAL)
                if any(task.exception() for task in ended):
                    stopping.set()  # the observer can't go on
            for task in working:
                task.result()

    async def _compute(self, cell: Cell, observer: Observer, compute: Compute, stopping: asyncio.Event) -> None:
        try:
            with self.results.lock(cell):
                # another command may have stored it since this one looked first
                result = self.results.find(cell) or await self._result(cell, observer, compute, stopping)
        except (CellBusyError, RunFolderBusyError):
            observer.left(cell, "another command is computing it")
        except InterruptedRunError as error:
            observer.left(cell, str(error))
        except (RunError, RequestError, OSError) as error:
            observer.failed(cell, str(error))
        else:
            if result is not None:
                observer.finished(cell, result)

    async def _result(
        self, cell: Cell, observer: Observer, compute: Compute, stopping: asyncio.Event
    ) -> Mapping[str, Any] | None:
        """Let a process come to the cell's result, and store it; None where none was started.

        The caller holds the cell's lock.
        """

        def tell(message: Message) -> None:
            if message == "started":
                observer.started(cell)
            elif message == "waiting":
                observer.waiting(cell)
            else:
                observer.progressed(cell, message)

        run = self._cell_run(cell)
        ended = await compute(run, tell)
        if ended is None:
            return None
        if ended.code == INTERRUPTED and stopping.is_set():
            raise InterruptedRunError("interrupted; it goes on when the command is given again")
        if ended.taken:
            raise RunFolderBusyError
        if ended.result is None:
            raise RunError(_reason(ended))
        with RunFolder(run.folder).lock():
            return self.results.store(cell, ended.result)

    def _cell_run(self, cell: Cell) -> CellRun:
        return CellRun(
            cell.name,
            (*cell.arguments(), *self.extra),
            self.results.work(cell),
            self.results.scratch / PREDICTIONS,
            # what PyTorch would use here, which a CPU affinity and OMP_NUM_THREADS bound
            self.threads or max(1, torch.get_num_threads() // self.workers),
        )


def _reason(ended: Ended) -> str:
    if ended.code < 0:
        return f"killed by {signal.Signals(-ended.code).name}; if it ran out of memory, use fewer --workers"
    reason = ended.last_lines[-1].removeprefix("netgraft: ") if ended.last_lines else "it said nothing"
    return f"{reason} (exit code {ended.code})"
