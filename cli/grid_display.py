"""What a grid shows while it is computed: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from netgraft.experiments.specification import Cell


REFRESHES = 2  # of the live table, a second

SHOWN_FAILURES = 5

WAITING = "waits for a process that an earlier command left at work on it"


def duration(seconds: float) -> str:
    """Write seconds for people: ``42 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


@dataclass
class Tally:
    """Counts what a grid has done; an observer that says nothing.

    Attributes:
        title: Of the experiment.
        total: Cells.
        done: Finished ones, earlier runs included.
        running: What the processes said last.
        gaps: Of finished cells, by row.
        failures: Cells -> reason.
    """

    title: str
    total: int
    done: int = 0
    running: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    computed: int = 0

    def started(self, cell: Cell) -> None:
        """Take note."""
        self.running[cell.name] = "starting"

    def waiting(self, cell: Cell) -> None:
        """Take note."""
        self.running[cell.name] = WAITING

    def progressed(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """Keep what the event says for people."""
        described = _describe(event)
        if described and cell.name in self.running:
            self.running[cell.name] = described

    def finished(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Count it."""
        self.running.pop(cell.name, None)
        self.done += 1
        self.computed += 1
        if result.get("gap") is not None:
            self.gaps.setdefault(_group(cell), []).append(result["gap"])

    def failed(self, cell: Cell, reason: str) -> None:
        """Keep the reason."""
        self.running.pop(cell.name, None)
        self.failures[cell.name] = reason

    def left(self, cell: Cell, reason: str) -> None:
        """It is nobody's here any more."""
        self.running.pop(cell.name, None)

    def seconds_left(self) -> float | None:
        """Estimate from the cells of this run; None before the first."""
        if not self.computed:
            return None
        left = self.total - self.done - len(self.failures)
        return (time.monotonic() - self.began) / self.computed * left

    def summary(self) -> str:
        """One line."""
        left = self.seconds_left()
        parts = [f"{self.done} of {self.total} cells", f"{len(self.failures)} failed" if self.failures else ""]
        return ", ".join(filter(None, [*parts, "" if left is None else f"{duration(left)} left"]))


def _group(cell: Cell) -> str:
    size = cell.options.get("shots")
    shots = f"{size} shot" if size == 1 else f"{size} shots"
    return " ".join(filter(None, [cell.pair, cell.row, shots if size else ""]))


def _describe(event: Mapping[str, Any]) -> str:
    kind = event.get("event")
    if kind == "phase_started":
        return f"phase {event['phase']} of {event['phases']}: {event['name']}"
    if kind == "progressed":
        return f"phase {event['phase']}: step {event['step']} of {event['steps']}"
    return f"{event['name']}: {event['done']} of {event['total']}" if kind == "track" else ""


class LiveView(Tally):
    """A table that is drawn again and again."""

    def __rich__(self) -> Group:
        """Draw it."""
        running = Table("running", "", box=None, pad_edge=False)
        for name, state in self.running.items():
            running.add_row(name, state)
        finished = Table("row", "cells", "gap to the teacher", box=None, pad_edge=False)
        for row, gaps in self.gaps.items():
            spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
            finished.add_row(row, str(len(gaps)), f"{statistics.mean(gaps):.2f}{spread}")
        failed = [f"failed: {name}: {reason}" for name, reason in list(self.failures.items())[-SHOWN_FAILURES:]]
        return Group(f"{self.title}: {self.summary()}", "", finished, "", running, *failed)


@dataclass
class LineView(Tally):
    """A line for each cell that is finished, failed or left."""

    stream: TextIO | None = None

    def waiting(self, cell: Cell) -> None:
        """Say so: it may take long."""
        super().waiting(cell)
        self._say(f"{cell.name} {WAITING}")

    def finished(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Print accuracy and time."""
        super().finished(cell, result)
        accuracy = "" if result.get("gap") is None else f"top-1 {result['student_top1']:.2f}, gap {result['gap']:.2f}, "
        self._say(f"{cell.name}: {accuracy}{duration(result['seconds'])}; {self.summary()}")

    def failed(self, cell: Cell, reason: str) -> None:
        """Print the reason."""
        super().failed(cell, reason)
        self._say(f"{cell.name} failed: {reason}")

    def left(self, cell: Cell, reason: str) -> None:
        """Print the reason."""
        super().left(cell, reason)
        self._say(f"{cell.name}: {reason}")

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


@contextmanager
def open_view(title: str, total: int, done: int, stream: TextIO, *, quiet: bool) -> Iterator[Tally]:
    """Choose what fits the stream."""
    if quiet:
        yield Tally(title, total, done)
    elif stream.isatty():
        view = LiveView(title, total, done)
        with Live(view, console=Console(file=stream), refresh_per_second=REFRESHES):
            yield view
    else:
        yield LineView(title, total, done, stream=stream)
