"""The command ``netgraft`` in processes that can be watched, bounded and killed.

They are forked: what takes seconds to import is there already.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from netgraft.cli.main import run

CRASHED = 70
"""Exit code of a process whose work raised what it shouldn't have."""

LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; the negative number of the signal that killed it.
        printed: To standard output.
        said: To standard error.
    """

    code: int
    printed: str
    said: str

    def is_refusal(self, code: int) -> bool:
        """Whether it left with this code and one sentence, and printed nothing."""
        one_line = self.said.startswith("netgraft: ") and self.said.count("\n") == 1 and self.said.endswith("\n")
        return self.code == code and one_line and not self.printed


class Forked:
    """A process that does some work: forked at once, and to be waited for.

    Args:
        work: Returns the exit code.
        seconds: After which it is killed by SIGALRM.
    """

    def __init__(self, work: Callable[[], int], *, seconds: int = LIMIT_SECONDS) -> None:
        self._streams: list[BinaryIO] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._work(work, seconds)

    def _work(self, work: Callable[[], int], seconds: int) -> None:
        """Never returns."""
        code = CRASHED
        try:
            signal.alarm(seconds)
            for number, stream in enumerate(self._streams, 1):
                os.dup2(stream.fileno(), number)
            sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> Ended:
        """Wait until it ends."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        texts = []
        for stream in self._streams:
            with stream:
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
        return Ended(code, *texts)


def start(arguments: Sequence[str], before: Callable[[], None] | None = None) -> Forked:
    """Begin a command line in a process of its own, which calls ``before`` first."""

    def work() -> int:
        if before is not None:
            before()
        return run(arguments)

    return Forked(work)


def carry_out(arguments: Sequence[str], before: Callable[[], None] | None = None) -> Ended:
    """Carry out a command line in a process of its own; see :func:`start`."""
    return start(arguments, before).wait()


def all_files(folder: Path) -> list[str]:
    """Return the names of all that lies in a folder and below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
