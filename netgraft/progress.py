"""How long work speaks: one protocol, and its silent form; and how training says that it can be stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, runtime_checkable

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
