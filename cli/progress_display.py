"""Reporters that speak: bars on a terminal, lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO, TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

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
        return self.seconds_left_with(0)

    def seconds_left_with(self, later: int) -> float | None:
        """Estimate the time of the steps that are left and of ``later`` ones as fast; None before the second step."""
        if self._first is None or self._last is None or self._last[0] == self._first[0]:
            return None
        per_step = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return per_step * (self.total - self._last[0] + later)


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
    """Says when a line is due, and what it says about the progress.

    Args:
        total: Steps, or whatever is counted.
        clock: Gives seconds.
        later: Steps of later phases.
    """

    def __init__(self, total: int, clock: Clock, later: int = 0) -> None:
        self._pace = Pace(total, clock)
        self._later = later
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
        left = self._pace.seconds_left_with(self._later)
        parts = [f"{done}/{self._pace.total}", format_terms(terms), _left(left, "of the run" if self._later else "")]
        return ", ".join(filter(None, parts))


LONG = 5.0
"""Seconds that a single thing takes at least to be told of in lines."""


class PlainReporter:
    """One line when a phase starts, some while it runs, one when it ends."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._line = _Line(stream)
        self._clock = clock
        self._label = ""
        self._terms: Mapping[str, float] = {}
        self._steps: Sequence[int] = ()
        self._milestones = _Milestones(0, clock)

    def planned(self, steps: Sequence[int]) -> None:
        """Remember it for the time that is left."""
        self._steps = steps

    def note(self, message: str) -> None:
        """Print it."""
        self._line.write(message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Print name and steps."""
        self._label = f"[{number}/{count}] {name}"
        self._terms = {}
        self._milestones = _Milestones(steps, self._clock, sum(self._steps[number:]))
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
        """Print a line at the start, some on the way and one at the end; of a single thing one, if it was long.

        Images and models are opened in front of refusals, which programs read as one line.
        """
        started = self._clock()
        milestones = _Milestones(total, self._clock)
        if total > 1:
            self._line.write(f"{name}: 0/{total}")
        for done, item in enumerate(items, 1):
            yield item
            if milestones.reached(done):
                self._line.write(f"{name}: {milestones.describe(done, {})}")
        seconds = self._clock() - started
        if total > 1 or seconds >= LONG:
            self._line.write(f"{name}: done in {seconds:.1f} s")


class JsonReporter:
    """One JSON object a line: ``event`` says which, the rest are the facts."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._line = _Line(stream)
        self._clock = clock
        self._phase = 0
        self._steps: Sequence[int] = ()
        self._pace = Pace(0, clock)
        self._said = clock()

    def _say(self, event: str, **facts: object) -> None:
        self._line.write(json.dumps({"event": event, **facts}))

    def _due(self, done: int, total: int) -> bool:
        if done < total and self._clock() - self._said < JSON_SECONDS:
            return False
        self._said = self._clock()
        return True

    def planned(self, steps: Sequence[int]) -> None:
        """Event ``planned`` with ``steps``, a number for each phase."""
        self._steps = steps
        self._say("planned", steps=list(steps))

    def note(self, message: str) -> None:
        """Event ``note`` with ``message``."""
        self._say("note", message=message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Event ``phase_started`` with ``phase``, ``phases``, ``name``, ``steps`` and ``done``."""
        self._phase, self._pace = number, Pace(steps, self._clock)
        self._say("phase_started", phase=number, phases=count, name=name, steps=steps, done=done)

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Event ``progressed``; the last of a phase always.

        It has ``phase``, ``step``, ``steps``, ``terms``, ``seconds_left`` of the phase and ``run_seconds_left``.
        """
        self._pace.update(done)
        total = self._pace.total
        if self._due(done, total):
            left = (self._pace.seconds_left, self._pace.seconds_left_with(sum(self._steps[self._phase :])))
            of_phase, of_run = (None if each is None else round(each, 1) for each in left)
            facts = {"phase": self._phase, "step": done, "steps": total, "terms": dict(terms)}
            self._say("progressed", **facts, seconds_left=of_phase, run_seconds_left=of_run)

    def phase_finished(self, seconds: float) -> None:
        """Event ``phase_finished`` with ``phase`` and ``seconds``."""
        self._say("phase_finished", phase=self._phase, seconds=round(seconds, 3))

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Events ``track`` with ``name``, ``done`` and ``total``; the last always."""
        for done, item in enumerate(items, 1):
            yield item
            if self._due(done, total):
                self._say("track", name=name, done=done, total=total)


class _Counted(MofNCompleteColumn):
    """How many are done; nothing where they aren't counted."""

    def render(self, task: Task) -> Text:
        """Write it."""
        return Text() if task.total is None else super().render(task)


class _Left(TimeRemainingColumn):
    """The time that is left, called so; nothing where it can't be told."""

    def render(self, task: Task) -> Text:
        """Write it."""
        return Text() if task.total is None else super().render(task).append(" left")


class _Bars(Progress):
    """Bars, and the loss in a line of its own, where it is whole at 80 columns too."""

    loss = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Draw them."""
        yield self.make_tasks_table(self.tasks)
        if self.loss:
            yield Text(self.loss, overflow="fold")


class RichReporter:
    """A bar for all steps of the run, one for the current phase's, one for whatever is tracked; a context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _Counted(),
            _Left(compact=True),
            console=console,
            refresh_per_second=REFRESHES,
            transient=True,
            expand=True,
        )
        self._planned: Sequence[int] = ()
        self._run: TaskID | None = None
        self._steps: TaskID | None = None
        self._before, self._total, self._name = 0, 0, ""
        self._terms: Mapping[str, float] = {}

    def __enter__(self) -> RichReporter:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def note(self, message: str) -> None:
        """Print it above the bars."""
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def planned(self, steps: Sequence[int]) -> None:
        """Remember it for the bar of the run."""
        self._planned = steps

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Start a new bar of steps, and at first the bar of the run, which says how much time is left."""
        self._before, self._total, self._name = sum(self._planned[: number - 1]), steps, name
        if self._run is None and count > 1 and self._planned:
            self._run = self._progress.add_task("whole run", total=sum(self._planned), completed=self._before + done)
        self._steps = self._progress.add_task(f"[{number}/{count}] {name}", total=steps, completed=done)

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Move the bars."""
        self._terms = terms
        self._progress.loss = format_terms(terms)
        if self._steps is not None:
            self._progress.update(self._steps, completed=done)
        if self._run is not None:
            self._progress.update(self._run, completed=self._before + done)

    def phase_finished(self, seconds: float) -> None:
        """Replace the bar by a line above the bars."""
        if self._steps is not None:
            self._progress.remove_task(self._steps)
            self._steps = None
        self._progress.loss = ""
        if self._run is not None and self._before + self._total >= sum(self._planned):
            self._progress.remove_task(self._run)
            self._run = None
        parts = [f"{self._total:,} steps in {seconds:.1f} s", format_terms(self._terms)]
        self.note(f"{self._name}: {', '.join(filter(None, parts))}")

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Show a bar as long as items are left."""
        # a single one has no parts to count, so its bar only moves
        task = self._progress.add_task(name, total=None if total == 1 else total)
        try:
            for item in items:
                yield item
                self._progress.advance(task)
        finally:
            self._progress.remove_task(task)


def format_terms(terms: Mapping[str, float]) -> str:
    """Write a loss and its terms for people: ``loss 0.0123 (logits)``, ``loss 0.75 = logits 0.5 + maps 0.25``."""
    if not terms:
        return ""
    total = f"loss {sum(terms.values()):.4g}"
    if len(terms) == 1:
        return f"{total} ({next(iter(terms))})"
    return f"{total} = {' + '.join(f'{name} {value:.4g}' for name, value in terms.items())}"


def _left(seconds: float | None, of_what: str = "") -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left{of_what and ' '}{of_what}"


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
