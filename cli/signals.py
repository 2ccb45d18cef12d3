"""Ctrl-C and SIGTERM: the first one during training lets the run save itself, any other leaves at once."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from netgraft.progress import ProgressReporter

T = TypeVar("T")


class Interruption:
    """What the signals have asked for, and whether a training step will hear it.

    Between its steps a run asks :meth:`requested` and saves itself; everywhere else nobody would ask, so a signal
    raises ``KeyboardInterrupt`` there.
    """

    def __init__(self) -> None:
        self._heard = False
        self.stepping = False

    def requested(self) -> bool:
        """Answer a run that asks before each step whether to stop."""
        self.stepping = True
        return self._heard

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Receive a signal."""
        if self._heard or not self.stepping:
            raise KeyboardInterrupt
        self._heard = True


class Attentive:
    """A reporter that passes everything on, and takes note where training steps end."""

    def __init__(self, reporter: ProgressReporter, interruption: Interruption) -> None:
        self._reporter = reporter
        self._interruption = interruption

    def note(self, message: str) -> None:
        """Pass it on."""
        self._reporter.note(message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Pass it on."""
        self._reporter.phase_started(number, count, name, steps, done)

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Pass it on."""
        self._reporter.progressed(done, terms)

    def phase_finished(self, seconds: float) -> None:
        """Pass it on; no step follows for a while."""
        self._interruption.stepping = False
        self._reporter.phase_finished(seconds)

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Pass it on."""
        return self._reporter.track(items, total=total, name=name)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Let the signals ask for an interruption; the former handlers come back afterwards."""
    interruption = Interruption()
    former = {number: signal.signal(number, interruption.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def heeding_signals(reporter: ProgressReporter) -> Iterator[tuple[ProgressReporter, Interruption]]:
    """Give a reporter and an interruption to run a job with."""
    with interruptible() as interruption:
        yield Attentive(reporter, interruption), interruption
