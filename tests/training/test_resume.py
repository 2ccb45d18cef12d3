"""A run that is stopped, killed or spoilt goes on as if it had never stopped: the same bits, the same lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from netgraft.errors import InterruptedRunError, RequestError, RunError
from netgraft.files import seal_archive
from netgraft.modules import state_digest
from netgraft.training.checkpoint import Checkpoint
from netgraft.training.runner import Runner
from tests.support.processes import HANGS, call
from tests.support.tiny_plan import (
    LONG,
    Case,
    Squared,
    make_views,
    rows,
)


def uninterrupted(folder: Path, dropout: float = 0.0) -> str:
    """Run from the beginning to the end; the student's digest."""
    folder.mkdir(exist_ok=True)
    case = Case(dropout=dropout)
    case.run(folder=folder)
    return state_digest(case.student)


@pytest.mark.parametrize("stop_at", range(9))
def test_stopped_anywhere_a_run_goes_on_bit_by_bit(tmp_path: Path, stop_at: int) -> None:
    expected = uninterrupted(tmp_path / "whole", dropout=0.5)
    folder, asked = tmp_path / "cut", iter(range(100))
    folder.mkdir()
    case = Case(dropout=0.5)
    if stop_at < 8:
        phase, step = divmod(stop_at, 4)
        with pytest.raises(InterruptedRunError, match=f"before step {step + 1} of phase {phase + 1}; saved in"):
            case.run(folder=folder, stop=lambda: next(asked) == stop_at)
        assert rows(folder) == [(0, 4)][:phase]
    else:
        case.run(folder=folder)
    torch.manual_seed(99)
    again = Case(dropout=0.5)
    again.run(folder=folder, resume=True)
    assert state_digest(again.student) == expected
    assert again.objective.calls == 8 - stop_at
    assert rows(folder) == [(0, 4), (1, 4)]
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("stop_at", [0, 3, 4, 6])
def test_a_run_without_an_end_of_views_goes_on_bit_by_bit(tmp_path: Path, stop_at: int) -> None:
    whole, folder, asked = Case(dropout=0.5), tmp_path / "cut", iter(range(100))
    whole.run(views=make_views(per_image=None))
    folder.mkdir()
    with pytest.raises(InterruptedRunError):
        Case(dropout=0.5).run(views=make_views(per_image=None), folder=folder, stop=lambda: next(asked) == stop_at)
    again = Case(dropout=0.5)
    again.run(views=make_views(per_image=None), folder=folder, resume=True)
    assert state_digest(again.student) == state_digest(whole.student)
    assert again.objective.calls == 8 - stop_at


LONG_ROWS = [(0, 10), (0, 12), (1, 10), (1, 20), (1, 23)]


def test_killed_anywhere_a_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole = Case(dropout=0.5, schedules=LONG)
    (tmp_path / "whole").mkdir()
    whole.run(folder=tmp_path / "whole")
    # saved after each step, at the ends of phases alone, never
    deaths = [(11, "0"), (33, "0"), (25, "1e9"), (11, "1e9")]
    processes = []
    for at, seconds in deaths:
        folder = tmp_path / f"killed at {at} {seconds}"
        folder.mkdir()
        script = tmp_path / f"{at}-{seconds}.py"
        processes.append((folder, call("killed_run", str(folder), str(at), seconds, script=script)))
    for folder, process in processes:
        _, error = process.communicate(timeout=HANGS)
        assert process.returncode == -9, error
        case = Case(dropout=0.5, schedules=LONG)
        case.run(folder=folder, resume=True)
        assert state_digest(case.student) == state_digest(whole.student)
        assert rows(folder) == LONG_ROWS
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_lines_behind_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    case = Case(schedules=LONG)
    with pytest.raises(InterruptedRunError):
        case.run(folder=tmp_path, stop=lambda: case.objective.calls == 15)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    with path.open("a") as file:  # what a kill between this line and the next checkpoint leaves
        file.write('{"phase": 1, "step": 10, "lr": 0.005, "squared": 1.0}\n{"phase": 1, "st')
    Case(schedules=LONG).run(folder=tmp_path, resume=True)
    assert rows(tmp_path) == LONG_ROWS
    assert path.read_text().startswith(whole)
    assert '"squared": 1.0}' not in path.read_text()


def test_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    case = Case()
    trained = case.run(folder=tmp_path, resume=True)
    assert (case.objective.calls, trained.steps) == (0, 8)
    assert state_digest(case.student) == expected
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_resume_a_run_begins_at_the_beginning(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path)
    assert uninterrupted(tmp_path) == expected
    assert rows(tmp_path) == [(0, 4), (1, 4)]


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    uninterrupted(tmp_path)
    case = Case()
    digest = state_digest(case.student)
    with pytest.raises(RequestError, match="belongs to another plan"):
        Runner(accelerator="cpu", precision="32").run(
            case.plan, make_views(), folder=tmp_path, fingerprint="other", resume=True
        )
    assert state_digest(case.student) == digest


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path, value: float) -> None:
    expected = uninterrupted(tmp_path / "whole")
    case = Case(objective=Squared(surprise_at=6, spoil=value))
    match = r"the loss is \{'squared': (nan|inf)\} at step 3 of phase 2 \(join\); the last good checkpoint stays at .*"
    with pytest.raises(RunError, match=match):
        case.run(folder=tmp_path)
    saved = Checkpoint.load(tmp_path / "checkpoint.pt", "f")
    assert (saved.phase, saved.step) == (1, 2)
    assert all(bool(weight.isfinite().all()) for weight in saved.weights.values())
    again = Case()
    again.run(folder=tmp_path, resume=True)
    assert state_digest(again.student) == expected


def test_loss_that_is_not_finite_before_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step 1 of phase 1 .* no checkpoint had been saved yet"):
        Case(objective=Squared(surprise_at=0, spoil=math.nan)).run(folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"phase": 99}, {"step": 10**9}, {"precision": "64"}, {"weights": {}}], ids=str)
def test_a_checkpoint_that_can_not_be_this_run_s_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        Case().run(folder=tmp_path, stop=iter([False] * 5 + [True]).__next__)
    path = tmp_path / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    with pytest.raises(RequestError, match="is no checkpoint of netgraft, or a damaged one: expected its SHA-256"):
        Case().run(folder=tmp_path, resume=True)
    seal_archive(path)
    with pytest.raises(RequestError, match=r"doesn't fit the plan: .*; remove it, and the run begins anew"):
        Case().run(folder=tmp_path, resume=True)
    path.unlink()
    again, whole = Case(), Case()
    again.run(folder=tmp_path, resume=True)
    whole.run()
    assert state_digest(again.student) == state_digest(whole.student)
