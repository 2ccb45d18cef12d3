"""Ctrl-C and SIGTERM: the first one lets work that can stop save itself, any other leaves at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from netgraft.training.launchers import is_first_process

INTERRUPTED = 130

ACKNOWLEDGED = b"\nnetgraft: stopping as soon as all is saved; Ctrl-C again leaves at once\n"
"""Said by the handler itself: a step may take its time."""


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Leave at once: by an exception, which cleans up behind it, but not where a module is being imported.

    There, libraries written in C make other errors of it, or report it and go on.

    Raises:
        KeyboardInterrupt: Nothing is being imported.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def leave() -> NoReturn:
    """End the process at once, by one sentence."""
    with suppress(OSError):
        os.write(2, b"netgraft: interrupted; a run that had begun goes on with --resume\n")
    os._exit(INTERRUPTED)


class Interruption:
    """What the signals have asked for.

    Args:
        will_be_heard: Says whether somebody asks :meth:`requested` again and again just now. Where nobody does, a
            signal raises ``KeyboardInterrupt``.
    """

    def __init__(self, will_be_heard: Callable[[], bool]) -> None:
        self._will_be_heard = will_be_heard
        self._requested = False

    def requested(self) -> bool:
        """Whether to save and leave."""
        return self._requested

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Receive a signal.

        Raises:
            KeyboardInterrupt: It is the second one, or nobody would hear of it.
        """
        if self._requested or not self._will_be_heard():
            interrupt(signum, frame)
        self._requested = True
        if is_first_process():
            with suppress(OSError):
                os.write(2, ACKNOWLEDGED)


def _always() -> bool:
    return True


@contextmanager
def interruptible(will_be_heard: Callable[[], bool] = _always) -> Iterator[Interruption]:
    """Let the signals ask for an interruption; the former handlers come back afterwards.

    Args:
        will_be_heard: See :class:`Interruption`.
    """
    interruption = Interruption(will_be_heard)
    former = {number: signal.signal(number, interruption.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
