"""Reporters that speak: bars on a terminal, lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from netgraft.progress import ProgressReporter, SilentReporter

T = TypeVar("T")

Clock = Callable[[], float]


LINE_SECONDS = 5.0  # between two lines about the same work

JSON_SECONDS = 0.5

REFRESHES = 10  # of the bars, a second


@dataclass
class Pace:
    """Speed of steps, measured from the first that is seen: what comes in front of it is no step."""

    total: int
    clock: Clock
    _first: tuple[int, float] | None = None
    _last: tuple[int, float] | None = None

    def update(self, done: int) -> None:
        """Take note that ``done`` steps lie behind."""
        self._last = (done, self.clock())
        self._first = self._first or self._last

    @property
    def seconds_left(self) -> float | None:
        """Estimate; None before the second step."""
        if self._first is None or self._last is None or self._last[0] == self._first[0]:
            return None
        per_step = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return per_step * (self.total - self._last[0])


@dataclass
class _Line:
    """A text stream that goes silent when its reader has left: a lost log must not end the work."""

    stream: TextIO
    closed: bool = False

    def write(self, text: str) -> None:
        if self.closed:
            return
        try:
            self.stream.write(text + "\n")
            self.stream.flush()
        except BrokenPipeError:
            self.closed = True


class _Milestones:
    """Says when a line is due, and what it says about the progress."""

    def __init__(self, total: int, clock: Clock) -> None:
        self._pace = Pace(total, clock)
        self._clock = clock
        self._said = clock()

    def reached(self, done: int) -> bool:
        """Whether it is time for a line; the last step has one of its own."""
        self._pace.update(done)
        total = self._pace.total
        if self._clock() - self._said >= LINE_SECONDS and done < total:
            self._said = self._clock()
            return True
        return False

    def describe(self, done: int, terms: Mapping[str, float]) -> str:
        parts = [f"{done}/{self._pace.total}", format_terms(terms), _left(self._pace.seconds_left)]
        return ", ".join(filter(None, parts))


class PlainReporter:
    """One line when a phase starts, some while it runs, one when it ends."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._line = _Line(stream)
        self._clock = clock
        self._label = ""
        self._terms: Mapping[str, float] = {}
        self._milestones = _Milestones(0, clock)

    def note(self, message: str) -> None:
        """Print it."""
        self._line.write(message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Print name and steps."""
        self._label = f"[{number}/{count}] {name}"
        self._terms = {}
        self._milestones = _Milestones(steps, self._clock)
        self._line.write(f"{self._label}: {steps} steps" + (f", going on after {done}" if done else ""))

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Print loss and time left, if it is time for a line."""
        self._terms = terms
        if self._milestones.reached(done):
            self._line.write(f"{self._label}: {self._milestones.describe(done, terms)}")

    def phase_finished(self, seconds: float) -> None:
        """Print the duration and the last loss."""
        parts = [f"done in {seconds:.1f} s", format_terms(self._terms)]
        self._line.write(f"{self._label}: {', '.join(filter(None, parts))}")

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Print a line at the start, some on the way and one at the end."""
        started = self._clock()
        milestones = _Milestones(total, self._clock)
        self._line.write(f"{name}: 0/{total}")
        for done, item in enumerate(items, 1):
            yield item
            if milestones.reached(done):
                self._line.write(f"{name}: {milestones.describe(done, {})}")
        self._line.write(f"{name}: done in {self._clock() - started:.1f} s")


class JsonReporter:
    """One JSON object a line: ``event`` says which, the rest are the facts."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._line = _Line(stream)
        self._clock = clock
        self._phase = 0
        self._pace = Pace(0, clock)
        self._said = clock()

    def _say(self, event: str, **facts: object) -> None:
        self._line.write(json.dumps({"event": event, **facts}))

    def _due(self, done: int, total: int) -> bool:
        if done < total and self._clock() - self._said < JSON_SECONDS:
            return False
        self._said = self._clock()
        return True

    def note(self, message: str) -> None:
        """Event ``note`` with ``message``."""
        self._say("note", message=message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Event ``phase_started`` with ``phase``, ``phases``, ``name``, ``steps`` and ``done``."""
        self._phase, self._pace = number, Pace(steps, self._clock)
        self._say("phase_started", phase=number, phases=count, name=name, steps=steps, done=done)

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Event ``progressed`` with ``phase``, ``step``, ``steps``, ``terms`` and ``seconds_left``; the last always."""
        self._pace.update(done)
        total, left = self._pace.total, self._pace.seconds_left
        if self._due(done, total):
            rounded = None if left is None else round(left, 1)
            self._say("progressed", phase=self._phase, step=done, steps=total, terms=dict(terms), seconds_left=rounded)

    def phase_finished(self, seconds: float) -> None:
        """Event ``phase_finished`` with ``phase`` and ``seconds``."""
        self._say("phase_finished", phase=self._phase, seconds=round(seconds, 3))

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Events ``track`` with ``name``, ``done`` and ``total``; the last always."""
        for done, item in enumerate(items, 1):
            yield item
            if self._due(done, total):
                self._say("track", name=name, done=done, total=total)


class RichReporter:
    """A bar for the phases, one for the current phase's steps, one for whatever is tracked; a context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[terms]}"),
            console=console,
            refresh_per_second=REFRESHES,
            transient=True,
        )
        self._phases: TaskID | None = None
        self._steps: TaskID | None = None
        self._number, self._total, self._name = 0, 0, ""
        self._terms: Mapping[str, float] = {}

    def __enter__(self) -> RichReporter:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def note(self, message: str) -> None:
        """Print it above the bars."""
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Move the bar of the phases and start a new bar of steps."""
        if self._phases is None:
            self._phases = self._progress.add_task("phases", total=count, terms="")
        self._number, self._total, self._name = number, steps, name
        self._progress.update(self._phases, completed=number - 1)
        self._steps = self._progress.add_task(name, total=steps, completed=done, terms="")

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Move the bar of the steps."""
        self._terms = terms
        if self._steps is not None:
            self._progress.update(self._steps, completed=done, terms=format_terms(terms))

    def phase_finished(self, seconds: float) -> None:
        """Replace the bar by a line above the bars."""
        if self._phases is not None and self._steps is not None:
            self._progress.update(self._phases, completed=self._number)
            self._progress.remove_task(self._steps)
            self._steps = None
        self.note(f"{self._name}: {self._total} steps in {seconds:.1f} s, {format_terms(self._terms)}")

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Show a bar as long as items are left."""
        task = self._progress.add_task(name, total=total, terms="")
        try:
            for item in items:
                yield item
                self._progress.advance(task)
        finally:
            self._progress.remove_task(task)


def format_terms(terms: Mapping[str, float]) -> str:
    """Write loss terms for people: ``logits 0.0123``, several with their sum in front."""
    parts = [f"{name} {value:.4g}" for name, value in terms.items()]
    if len(parts) > 1:
        parts.insert(0, f"loss {sum(terms.values()):.4g}")
    return " ".join(parts)


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left"


@contextmanager
def open_reporter(stream: TextIO, *, quiet: bool = False, json_lines: bool = False) -> Iterator[ProgressReporter]:
    """Choose: silence, JSON lines, bars where ``stream`` is a terminal, lines elsewhere."""
    if quiet:
        yield SilentReporter()
    elif json_lines:
        yield JsonReporter(stream)
    elif stream.isatty():
        with RichReporter(Console(file=stream)) as reporter:
            yield reporter
    else:
        yield PlainReporter(stream)
