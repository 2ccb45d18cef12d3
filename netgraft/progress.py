"""How long work speaks: one protocol, and its silent form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

T = TypeVar("T")


class ProgressReporter(Protocol):
    """Receives what happens; never decides anything."""

    def note(self, message: str) -> None:
        """Say what was chosen and why, once."""
        ...

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Phase ``number`` (1-based) of ``count`` begins, or goes on after ``done`` of its ``steps``."""
        ...

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """``done`` steps of the current phase lie behind; ``terms`` are the loss terms of the last one."""
        ...

    def phase_finished(self, seconds: float) -> None:
        """The current phase is complete."""
        ...

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Pass ``items`` on while showing how many of ``total`` are done."""
        ...


class SilentReporter:
    """Says nothing."""

    def note(self, message: str) -> None:
        """Ignore it."""

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Ignore it."""

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Ignore it."""

    def phase_finished(self, seconds: float) -> None:
        """Ignore it."""

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        """Pass ``items`` on."""
        yield from items
