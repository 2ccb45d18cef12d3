"""How long work speaks: one protocol, its silent form and a plain one; and how training says that it can be stopped."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TextIO, TypeVar, runtime_checkable

T = TypeVar("T")


class ProgressReporter(Protocol):
    """Receives what happens; never decides anything.

    A class that derives from it does nothing about what it doesn't define.
    """

    def note(self, message: str) -> None:
        """Say what was chosen and why, once."""
        return

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Phase ``number`` (1-based) of ``count`` begins, or goes on after ``done`` of its ``steps``."""
        return

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """``done`` steps of the current phase lie behind; ``terms`` are the loss terms of the last one."""
        return

    def phase_finished(self, seconds: float) -> None:
        """The current phase is complete."""
        return

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Pass ``items`` on, perhaps while showing how many of ``total`` are done; a single one is just under way."""
        yield from items


@runtime_checkable
class PlanListener(Protocol):
    """A reporter that also wants to know beforehand how much there is to do."""

    def planned(self, steps: Sequence[int]) -> None:
        """Training is about to begin: phases of so many steps, some of which may be done."""
        ...


class SilentReporter(ProgressReporter):
    """Says nothing."""


class Recorder(ProgressReporter):
    """Passes everything on, and keeps the terms of the loss of every tenth step and of the last of a phase.

    Attributes:
        history: Name of the phase, step in it, and each term by its name.
    """

    def __init__(self, reporter: ProgressReporter) -> None:
        self._reporter = reporter
        self._phase, self._steps = "", 0
        self.history: list[dict[str, Any]] = []

    def note(self, message: str) -> None:
        """Pass it on."""
        self._reporter.note(message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Pass it on, and take note of the phase."""
        self._phase, self._steps = name, steps
        self._reporter.phase_started(number, count, name, steps, done)

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Pass it on, and keep it now and then."""
        if done % EVERY == 0 or done == self._steps:
            self.history.append({"phase": self._phase, "step": done, **terms})
        self._reporter.progressed(done, terms)

    def phase_finished(self, seconds: float) -> None:
        """Pass it on."""
        self._reporter.phase_finished(seconds)

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Pass it on."""
        yield from self._reporter.track(items, total=total, name=name)


EVERY = 10
"""Steps between two that are kept."""


def _in_a_notebook() -> bool:
    """Whether this process is a notebook's kernel: IPython is there, and its shell belongs to one."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class LineReporter(ProgressReporter):
    """Rewrites one line in place, for people who call from Python: in a terminal or a notebook.

    Args:
        stream: Where a carriage return leads back to the start of the line.
        clock: Seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._label, self._steps, self._started, self._first = "", 0, 0.0, 0
        self._said, self._width = -WAIT, 0

    @classmethod
    def where_somebody_looks(cls) -> ProgressReporter:
        """Return one for a terminal or a notebook, and a silent one where neither is there."""
        if sys.stderr.isatty():
            return cls(sys.stderr)
        # a notebook's cell shows what is printed, and knows carriage returns
        return cls(sys.stdout) if _in_a_notebook() else SilentReporter()

    def note(self, message: str) -> None:
        """Print it in a line of its own."""
        self._end(message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Begin a line."""
        self._label, self._steps = f"[{number}/{count}] {name}", steps
        self._started, self._first = self._clock(), done
        self._write(f"{self._label}: {steps:,} steps")

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Rewrite the line, at most ten times a second."""
        now = self._clock()
        if now - self._said < WAIT and done < self._steps:
            return
        per_step = (now - self._started) / max(1, done - self._first)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        left = f", {_duration(per_step * (self._steps - done))} left" if done < self._steps else ""
        self._write(f"{self._label}: {done:,} of {self._steps:,}, {shown}{left}")

    def phase_finished(self, seconds: float) -> None:
        """End the line."""
        self._end(f"{self._label}: {self._steps:,} steps in {_duration(seconds)}")

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Count in place."""
        done = 0
        for done, item in enumerate(items, 1):
            yield item
            if self._clock() - self._said >= WAIT:
                self._write(f"{name}: {done:,} of {total:,}")
        self._end(f"{name}: {done:,} done")

    def _write(self, line: str) -> None:
        self._said = self._clock()
        if self._stream.isatty():  # from a second row a carriage return doesn't lead back to the first
            line = line[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def _end(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._width) + "\n")
        self._stream.flush()
        self._width = 0


WAIT = 0.1
"""Seconds between two looks of a line."""


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


_in_training_steps: ContextVar[bool] = ContextVar("in_training_steps", default=False)


@contextmanager
def training_steps() -> Iterator[None]:
    """Announce training steps, before each of which the run asks whether to stop.

    This is no event of a reporter: of several processes only one reports, and each can be stopped.
    """
    token = _in_training_steps.set(True)
    try:
        yield
    finally:
        _in_training_steps.reset(token)


def in_training_steps() -> bool:
    """Whether training steps run just now, so that a request to stop will soon be heard."""
    return _in_training_steps.get()
