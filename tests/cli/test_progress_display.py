"""What long work says: to people, to logs, to programs."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable

import pytest
from netgraft.cli.progress_display import (
    JsonReporter,
    Pace,
    PlainReporter,
    RichReporter,
    format_terms,
    open_reporter,
)
from rich.console import Console

from netgraft.progress import ProgressReporter, SilentReporter


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def run_phase(reporter: ProgressReporter, clock: Clock, *, steps: int, seconds: float, done: int = 0) -> None:
    reporter.phase_started(2, 3, "graft block 4", steps, done)
    for step in range(done, steps):
        clock.now += seconds
        reporter.progressed(step + 1, {"logits": 1.0 / (step + 1)})
    reporter.phase_finished(seconds * (steps - done))


def test_time_left_comes_from_the_speed_of_the_steps_alone() -> None:
    clock = Clock()
    pace = Pace(50, clock)
    assert pace.seconds_left is None
    clock.now += 1000  # getting ready is no step
    pace.update(10)
    assert pace.seconds_left is None
    clock.now += 6
    pace.update(13)
    assert pace.seconds_left == pytest.approx((50 - 13) * 2.0)


def test_a_fast_phase_takes_two_plain_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    run_phase(PlainReporter(stream, clock), clock, steps=200, seconds=0.01)
    assert stream.getvalue().splitlines() == [
        "[2/3] graft block 4: 200 steps",
        "[2/3] graft block 4: done in 2.0 s, loss 0.005 (logits)",
    ]


def test_plain_lines_for_a_slow_phase_come_every_five_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    run_phase(PlainReporter(stream, clock), clock, steps=1000, seconds=1.0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 199 + 1
    assert lines[2] == "[2/3] graft block 4: 10/1000, loss 0.1 (logits), 0:16:30 left"


def test_the_time_that_is_left_is_that_of_all_phases() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock)
    reporter.planned([500, 1000, 200])
    run_phase(reporter, clock, steps=1000, seconds=1.0)
    # 990 seconds of this phase, and 200 steps as fast
    assert stream.getvalue().splitlines()[2].endswith("10/1000, loss 0.1 (logits), 0:19:50 left of the run")
    stream = io.StringIO()
    programs = JsonReporter(stream, clock)
    programs.planned([500, 4, 6])
    run_phase(programs, clock, steps=4, seconds=1.0)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "planned", "steps": [500, 4, 6]}
    assert [event["run_seconds_left"] for event in events[2:6]] == [None, 8.0, 7.0, 6.0]


def test_a_single_item_is_told_of_where_it_was_long() -> None:
    for seconds, said in ((2, []), (7, ["opening: done in 7.0 s"])):
        stream, clock = io.StringIO(), Clock()
        for _ in PlainReporter(stream, clock).track([0], total=1, name="opening"):
            clock.now += seconds
        assert stream.getvalue().splitlines() == said


def test_plain_lines_say_where_a_phase_goes_on() -> None:
    stream, clock = io.StringIO(), Clock()
    run_phase(PlainReporter(stream, clock), clock, steps=10, seconds=1.0, done=7)
    assert "going on after 7" in stream.getvalue().splitlines()[0]


def test_tracking_inside_a_phase_leaves_its_count_alone() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock)
    reporter.phase_started(1, 1, "train", 100, 0)
    seen = []
    for item in reporter.track(range(4), total=4, name="caching"):
        clock.now += 3
        seen.append(item)
    for step in range(100):
        clock.now += 0.2
        reporter.progressed(step + 1, {})
    assert seen == [0, 1, 2, 3]
    text = stream.getvalue()
    assert "caching: 2/4" in text
    assert "train: 26/100" in text


def test_json_lines_hold_the_facts() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = JsonReporter(stream, clock)
    reporter.note("a note")
    run_phase(reporter, clock, steps=4, seconds=1.0)
    assert list(reporter.track("ab", total=2, name="evaluating")) == ["a", "b"]
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "note", "message": "a note"}
    assert events[1] == {
        "event": "phase_started",
        "phase": 2,
        "phases": 3,
        "name": "graft block 4",
        "steps": 4,
        "done": 0,
    }
    assert [(e["step"], e["seconds_left"]) for e in events[2:6]] == [(1, None), (2, 2.0), (3, 1.0), (4, 0.0)]
    assert events[3]["terms"] == {"logits": 0.5}
    assert events[6] == {"event": "phase_finished", "phase": 2, "seconds": 4.0}
    assert events[-1] == {"event": "track", "name": "evaluating", "done": 2, "total": 2}


def test_json_lines_of_fast_steps_are_few_but_the_last_is_there() -> None:
    stream, clock = io.StringIO(), Clock()
    run_phase(JsonReporter(stream, clock), clock, steps=1000, seconds=0.001)
    steps = [e["step"] for e in map(json.loads, stream.getvalue().splitlines()) if e["event"] == "progressed"]
    assert len(steps) <= 3
    assert steps[-1] == 1000


@pytest.mark.parametrize("kind", [PlainReporter, JsonReporter])
def test_a_log_that_nobody_reads_any_more_ends_nothing(kind: Callable[[io.StringIO, Clock], ProgressReporter]) -> None:
    clock = Clock()
    reporter = kind(ClosedPipe(), clock)
    run_phase(reporter, clock, steps=3, seconds=10.0)
    assert list(reporter.track(range(3), total=3, name="evaluating")) == [0, 1, 2]


def until_shown(stream: io.StringIO, text: str) -> None:
    """Wait: the bars draw themselves from time to time."""
    deadline = time.monotonic() + 300
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.02)


def test_bars_show_phase_steps_loss_and_notes() -> None:
    stream = Terminal()
    with RichReporter(Console(file=stream, force_terminal=True, width=120)) as reporter:
        reporter.note("[not markup]")
        reporter.planned([100, 40, 60])
        reporter.phase_started(2, 3, "graft block 4", 40, 10)
        reporter.progressed(30, {"logits": 0.25})
        for shown in ("loss 0.25 (logits)", "30/40", "whole run", "130/200"):
            until_shown(stream, shown)
        reporter.phase_finished(1.5)
        assert list(reporter.track(range(5), total=5, name="evaluating")) == [0, 1, 2, 3, 4]
    assert "[not markup]" in stream.getvalue()
    assert "graft block 4: 40 steps in 1.5 s, loss 0.25 (logits)" in stream.getvalue()


def test_a_loss_of_many_terms_is_whole_at_80_columns() -> None:
    stream = Terminal()
    terms = {f"term {number}": 1.0 for number in range(12)}
    with RichReporter(Console(file=stream, force_terminal=True, width=80)) as reporter:
        reporter.phase_started(1, 1, "train", 10, 0)
        reporter.progressed(5, terms)
        until_shown(stream, "term 11 1")


def test_a_loss_is_named_and_its_terms_add_up_to_it() -> None:
    assert format_terms({"logits": 0.5, "features": 0.25}) == "loss 0.75 = logits 0.5 + features 0.25"
    assert format_terms({"logits": 0.5}) == "loss 0.5 (logits)"
    assert format_terms({}) == ""


def test_the_reporter_follows_the_request_and_the_stream() -> None:
    with (
        open_reporter(Terminal(), quiet=True, json_lines=True) as silent,
        open_reporter(Terminal(), json_lines=True) as machine,
        open_reporter(Terminal()) as bars,
        open_reporter(io.StringIO()) as lines,
    ):
        kinds = [type(reporter) for reporter in (silent, machine, bars, lines)]
    assert kinds == [SilentReporter, JsonReporter, RichReporter, PlainReporter]
