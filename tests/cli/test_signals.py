"""Signals: the first one during training steps lets a run save itself, any other leaves at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from netgraft.cli.signals import interruptible

from netgraft.errors import InterruptedRunError
from netgraft.progress import SilentReporter, in_training_steps, training_steps
from netgraft.training.runner import Runner
from tests.support.cli import run_json
from tests.support.held_runs import gate_at
from tests.support.processes import heed_ctrl_c
from tests.support.tiny_plan import Case, Squared, make_views

COMMAND = [sys.executable, "-m", "netgraft.cli.main"]

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_heard_between_steps_and_at_once_elsewhere(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    with interruptible(in_training_steps) as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)  # no step would hear it
        assert not interruption.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)  # asking changes nothing
        with training_steps():
            assert not interruption.requested()
            signal.raise_signal(number)
            assert interruption.requested()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)  # the second one
    with interruptible(in_training_steps) as interruption:
        with training_steps():
            interruption.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == former


@pytest.mark.parametrize("number", BOTH)
def test_work_that_always_asks_hears_the_first_signal(number: signal.Signals) -> None:
    with interruptible() as interruption:
        assert not interruption.requested()
        signal.raise_signal(number)
        assert interruption.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


class Signalling(SilentReporter):
    """Raises a signal where a phase starts, or where it has finished."""

    def __init__(self, where: str) -> None:
        self.where = where

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        if self.where == f"start {number}":
            signal.raise_signal(signal.SIGINT)

    def phase_finished(self, seconds: float) -> None:
        if self.where == "end":
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("where", ["start 1", "start 2", "end", "preparation"])
def test_a_signal_in_front_of_the_steps_and_behind_them_ends_a_run_at_once(where: str) -> None:
    case, views = Case(), make_views()
    if where == "preparation":  # while copies are made and caches are opened
        case.teacher[0].register_forward_hook(lambda *given: signal.raise_signal(signal.SIGINT))
    with interruptible(in_training_steps) as interruption, pytest.raises(KeyboardInterrupt):
        case.run(views=views, reporter=Signalling(where), stop=interruption.requested)
    assert case.objective.calls == {"start 2": 4, "end": 4}.get(where, 0)


def test_a_signal_within_a_step_lets_the_run_save_itself(tmp_path: Path) -> None:
    case = Case(objective=Squared(surprise_at=2, surprise=lambda: signal.raise_signal(signal.SIGINT)))
    runner = Runner(accelerator="cpu", precision="32", checkpoint_seconds=1e9)
    with (
        interruptible(in_training_steps) as interruption,
        pytest.raises(InterruptedRunError, match="stopped before step 4 of phase 1; saved in"),
    ):
        case.run(runner=runner, folder=tmp_path, stop=interruption.requested)
    assert (tmp_path / "checkpoint.pt").exists()
    assert not in_training_steps()


def test_an_interrupted_run_resumes_to_the_same_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = ["distill", "--shots", "2", "--views", "plain", "--block-steps", "40,2", "--join-steps", "2"]
    request += ["--precision", "32"]  # not by measurement: two runs are compared
    with gate_at(tmp_path / "gate") as gate:
        command = gate.before([*COMMAND, *request, "--out", "run"])
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
        while not gate.reached:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, rest = running.communicate()
    assert running.returncode == 130
    assert "netgraft: stopping as soon as all is saved; Ctrl-C again leaves at once" in rest
    assert "netgraft: stopped before step 21 of phase 1" in rest
    assert "go on with --resume" in rest
    assert "Traceback" not in rest
    assert not Path("run/result.json").exists()
    resumed = run_json(capsys, *request, "--out", "run", "--resume")
    whole = run_json(capsys, *request, "--out", "other")
    assert resumed["student_digest"] == whole["student_digest"]
