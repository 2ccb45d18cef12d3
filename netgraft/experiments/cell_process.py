"""The process that computes a cell, on this machine: how it is started, listened to and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from netgraft.jobs.run_folder import RunFolder

INTERRUPTED = 130

STOP_TIMEOUT = 60.0  # seconds that a cell has to save itself before it is killed

POLL_INTERVAL = 0.2  # seconds between two looks at what nobody announces

KEPT_LINES = 20  # of what a process last wrote to stderr

LONGEST_LINE = 2**24  # bytes

Message = Literal["started", "waiting"] | Mapping[str, Any]
"""The process has started, or waits for another that works in its folder, or reports as with ``--json``."""

Tell = Callable[[Message], None]


@dataclass(frozen=True)
class CellRun:
    """What is to be run for a cell.

    Attributes:
        name: Of the cell.
        arguments: Of ``netgraft``.
        folder: Of the run.
        answers: Folder of the teacher's answers, which runs share; none if None.
        threads: For PyTorch.
        module: Carries the arguments out.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    answers: Path | None
    threads: int
    module: str = "netgraft"

    def command(self) -> list[str]:
        """Return the command."""
        # -P: what lies in the current folder is not what is installed
        start = [sys.executable, "-P", "-m", self.module, *self.arguments]
        shared = [] if self.answers is None else ["--keep-answers", str(self.answers)]
        return [*start, "--out", str(self.folder), *shared, "--resume", "--json"]


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; a signal's number, negative, where one killed it.
        result: What came out; None where nothing did.
        last_lines: Of what it said apart from reports.
        taken: Whether another process is at work in its folder.
        seconds: It lived.
    """

    code: int
    result: Mapping[str, Any] | None = None
    last_lines: tuple[str, ...] = ()
    taken: bool = False
    seconds: float = 0.0


async def compute(
    run: CellRun,
    tell: Tell,
    stopping: asyncio.Event,
    *,
    environment: Mapping[str, str] | None = None,
    current: Path | None = None,
) -> Ended | None:
    """Let a process compute a cell.

    A process that an earlier, killed command left at work in the folder comes to its end first: nothing is computed
    twice. Once ``stopping`` is set the process saves itself; if it doesn't within ``STOP_TIMEOUT`` it is killed. It is
    killed at once where this coroutine is cancelled.

    Args:
        run: What is to be run.
        tell: Is told what happens.
        stopping: Set when work is to be saved and left.
        environment: Variables of the process, apart from its number of threads; those of this one by default.
        current: Its current folder; that of this process by default.

    Returns:
        How it ended; None where it was not started, for ``stopping`` was set.

    Raises:
        RequestError: The folder is no run's, or its result is damaged, or the file system can't lock.
        OSError: The process can't be started.
    """
    folder = RunFolder(run.folder)
    if folder.is_locked():
        tell("waiting")
        while not stopping.is_set() and folder.is_locked():
            await asyncio.sleep(POLL_INTERVAL)
    if stopping.is_set():
        return None
    began = time.perf_counter()
    # no shell reads what an experiment says: each part is one argument, whose value its option checks
    process = await asyncio.create_subprocess_exec(
        *run.command(),
        stdin=subprocess.PIPE if run.module == LEASHED else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**(os.environ if environment is None else environment), "OMP_NUM_THREADS": str(run.threads)},
        cwd=current,
        start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on once
        limit=LONGEST_LINE,
    )
    tell("started")
    stopper = asyncio.create_task(_stop(process, stopping))
    try:
        last_lines = await _pass_on_reports(process, tell)
        code = await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    finally:
        stopper.cancel()
    seconds = time.perf_counter() - began
    if code:
        return Ended(code, None, last_lines, folder.is_locked(), seconds)
    with folder.lock():
        return Ended(code, folder.result(), last_lines, seconds=seconds)


LEASHED = "netgraft.experiments.leash"
"""The module whose process ends with the one that started it."""


async def _stop(process: asyncio.subprocess.Process, stopping: asyncio.Event) -> None:
    """Let a process save itself once that is asked for; a second signal would make it leave at once."""
    await stopping.wait()
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(STOP_TIMEOUT)
        process.kill()


async def _pass_on_reports(process: asyncio.subprocess.Process, tell: Tell) -> tuple[str, ...]:
    """Tell what a process reports on stderr until it ends; return its last lines that are no reports."""
    last_lines: deque[str] = deque(maxlen=KEPT_LINES)
    assert process.stderr is not None
    async for line in process.stderr:
        try:
            tell(dict(json.loads(line)))
        except (ValueError, TypeError):
            last_lines.append(line.decode(errors="replace").rstrip())
    return tuple(filter(None, last_lines))
