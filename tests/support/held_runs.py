"""Runs of ``netgraft`` that wait between two of their steps, so that what a test does meanwhile finds them at work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from netgraft.cli.main import run

from netgraft.experiments.cell_process import CellRun, Ended, Tell
from netgraft.experiments.scheduler import Compute, Executor

_PROGRAM = """
import os, runpy, sys, time
from pathlib import Path
from netgraft.cli.signals import Interruption
gate, step, module = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
del sys.argv[1:4]
asked, requested = [], Interruption.requested

def waiting(interruption):
    asked.append(True)
    if len(asked) > step:
        (gate / str(os.getpid())).touch()
        while not requested(interruption) and not (gate / "open").exists():
            time.sleep(0.01)
    return requested(interruption)

Interruption.requested = waiting
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Gate:
    """At which runs wait until it is opened, or until they are asked to stop.

    Attributes:
        folder: Its own.
        step: Of all of a run's, behind which it comes to the gate.
    """

    folder: Path
    step: int = 20

    def open(self) -> None:
        """Let them all go on, those too that come later."""
        (self.folder / "open").touch()

    @property
    def reached(self) -> int:
        """How many processes have come to it."""
        return sum(path.name != "open" for path in self.folder.iterdir())

    def before(self, command: Sequence[str]) -> list[str]:
        """Return what carries out a command ``PYTHON ... -m MODULE ARGUMENTS`` and waits."""
        place = command.index("-m")
        return [*command[:place], "-c", _PROGRAM, str(self.folder), str(self.step), *command[place + 1 :]]

    def executor(self, executor: Executor) -> Executor:
        """Return what computes cells as ``executor`` does, by runs that wait."""

        @asynccontextmanager
        async def opened(stopping: asyncio.Event) -> AsyncIterator[Compute]:
            async with executor(stopping) as compute:

                async def compute_held(cell: CellRun, tell: Tell) -> Ended | None:
                    return await compute(HeldRun(**vars(cell), gate=self), tell)

                yield compute_held

        return opened


@contextmanager
def gate_at(folder: Path, step: int = 20) -> Iterator[Gate]:
    """Make a gate, and open it in the end: nothing waits for ever."""
    folder.mkdir()
    gate = Gate(folder, step)
    try:
        yield gate
    finally:
        gate.open()


@dataclass(frozen=True)
class HeldRun(CellRun):
    """A cell's run that waits at a gate."""

    gate: Gate = Gate(Path("gate"))

    def command(self) -> list[str]:
        """Return the command."""
        return self.gate.before(super().command())


def hold_cells(folder: str, *arguments: str) -> None:
    """Carry out a command line whose cells wait at the gate of a folder; a subprocess calls this."""
    gate, plain = Gate(Path(folder)), CellRun.command
    setattr(CellRun, "command", lambda cell: gate.before(plain(cell)))  # noqa: B010
    sys.exit(run(arguments))
