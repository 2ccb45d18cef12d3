"""The plain reporter's line, and what a recorder keeps; both pass on what they are asked to count."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from netgraft.progress import LineReporter, Recorder, SilentReporter


class Clock:
    """Moves by half a second at each look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def seen(text: str) -> list[str]:
    """What stands on a screen in the end: a carriage return goes back, what is longer shows through."""
    lines = []
    for line in text.split("\n"):
        screen = ""
        for part in line.split("\r"):
            screen = part + screen[len(part) :]
        lines.append(screen.rstrip())
    return lines[:-1]


def test_a_phase_is_a_line_that_is_rewritten() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, Clock(0.5))
    reporter.note("the student got all of its weights from the teacher")
    reporter.phase_started(1, 2, "graft block 2", 1200, 0)
    for done in range(1, 1201):
        reporter.progressed(done, {"logits": 1 / done})
    reporter.phase_finished(3725.0)
    assert list(reporter.track("abc", total=3, name="making views")) == ["a", "b", "c"]
    assert seen(stream.getvalue()) == [
        "the student got all of its weights from the teacher",
        "[1/2] graft block 2: 1,200 steps in 1 h 2 min",
        "making views: 3 done",
    ]
    rewritten = [part.rstrip() for part in stream.getvalue().split("\r")]
    # half a second for each look, two looks a step: one to see whether it is time, one to remember when it was said
    assert "[1/2] graft block 2: 600 of 1,200, logits 0.001667, 10 min left" in rewritten


def test_a_line_is_rewritten_ten_times_a_second_at_most() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, Clock(0.001))
    reporter.phase_started(1, 1, "train", 1000, 0)
    for done in range(1, 1001):
        reporter.progressed(done, {"kd": 1.0})
    assert 10 <= stream.getvalue().count("\r") <= 12


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_that_is_rewritten_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    reporter = LineReporter(stream, Clock(0.5))
    reporter.phase_started(1, 1, "train the student", 100, 0)
    reporter.progressed(50, {"a long name of a term": 1.0, "another one": 2.0})
    assert max(map(len, stream.getvalue().split("\r"))) == 39
    reporter.note("what is said once may be as long as it likes, since nothing goes back to its start")
    assert stream.getvalue().endswith("nothing goes back to its start\n")


def test_it_speaks_where_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    shells = {"none": None, "in a terminal": SimpleNamespace(), "of a notebook": SimpleNamespace(kernel=object())}
    ipython = ModuleType("IPython")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    # a program may import what runs notebooks without being one
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert isinstance(LineReporter.where_somebody_looks(), SilentReporter)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    for name, shell in shells.items():
        monkeypatch.setattr(ipython, "get_ipython", lambda shell=shell: shell, raising=False)
        assert isinstance(LineReporter.where_somebody_looks(), LineReporter) == (name == "of a notebook")
    monkeypatch.setattr(ipython, "get_ipython", lambda: None, raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(LineReporter.where_somebody_looks(), LineReporter)


def test_a_recorder_keeps_every_tenth_step_and_the_last_and_passes_everything_on() -> None:
    told: list[object] = []

    class Listener(SilentReporter):
        def note(self, message: str) -> None:
            told.append(message)

        def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
            told.append((number, count, name, steps, done))

        def progressed(self, done: int, terms: object) -> None:
            told.append(done)

        def phase_finished(self, seconds: float) -> None:
            told.append(seconds)

        def track(self, items: object, *, total: int, name: str) -> Iterator[int]:  # type: ignore[override]
            told.append((total, name))
            yield from [4, 5]

    recorder = Recorder(Listener())
    recorder.note("hello")
    recorder.phase_started(1, 1, "train", 23, 0)
    for done in range(1, 24):
        recorder.progressed(done, {"kd": float(done)})
    recorder.phase_finished(2.5)
    assert list(recorder.track([1], total=1, name="views")) == [4, 5]
    assert recorder.history == [{"phase": "train", "step": step, "kd": float(step)} for step in (10, 20, 23)]
    assert told == ["hello", (1, 1, "train", 23, 0), *range(1, 24), 2.5, (1, "views")]
