"""Training between the rounds in which channels go."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from netgraft.cli.main import run
from PIL import Image
from timm.data import resolve_model_data_config
from torch import nn

import netgraft
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.derivation import Derivation, Deriver
from netgraft.deriving.budget import budget_of
from netgraft.deriving.options import DerivingOptions
from netgraft.distillation import RecoveryTraining, recovering
from netgraft.errors import InterruptedRunError, RequestError
from netgraft.jobs.distill import DistillJob
from netgraft.methods.registry import KD, NetGraft
from netgraft.modules import state_digest
from netgraft.progress import SilentReporter
from netgraft.training.options import DeviceOptions
from netgraft.training.runner import Runner
from tests.support.cli import fails

BUDGET = budget_of({"macs": 0.3})

RUNNER = Runner(accelerator="cpu", precision="32")

SHORT = NetGraft(block_steps=(0,), joins="at-once", adapters="frozen", maps_weight=0.3, join_steps=4)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@cache
def photographs() -> list[Image.Image]:
    return list(netgraft.open_data("digits").train.load_many(range(12)))


def deriver(**options: Any) -> Deriver:
    teacher = netgraft.load_teacher("digits_vgg7_bn")
    data_config = resolve_model_data_config(teacher)
    views = Views.configured(photographs(), VIEW_POLICIES["plain"], data_config, seed=0)
    return Deriver(teacher, views, data_config, options=DerivingOptions(**options))


def training(tool: Deriver, **given: Any) -> RecoveryTraining:
    teacher = tool.anatomy.model
    data_config = resolve_model_data_config(teacher)
    views = Views.configured(photographs(), VIEW_POLICIES["plain"], data_config, seed=0)
    return RecoveryTraining(teacher, photographs(), SHORT, 5, views, RUNNER, data_config, **given)


def test_a_recovery_that_does_nothing_changes_nothing_and_is_asked_between_rounds() -> None:
    asked: list[int] = []

    def nothing(number: int, solve: Callable[[], Derivation | None]) -> Derivation | None:
        asked.append(number)
        return solve()

    plain = deriver(rounds=3).derive(BUDGET)
    recovered = deriver(rounds=3, recovery_steps=1).derive(BUDGET, nothing)
    assert asked == [1, 2]
    assert state_digest(recovered.student) == state_digest(plain.student)
    assert recovered.kept_names() == plain.kept_names()


@torch.no_grad()
def test_the_next_round_is_of_the_student_that_was_trained() -> None:
    silent: list[int] = []

    def silence(number: int, solve: Callable[[], Derivation | None]) -> Derivation | None:
        # channels that a training has silenced are those that go for nothing
        derived = solve()
        assert derived is not None
        norm = derived.student.get_submodule("features.8")
        assert isinstance(norm, nn.BatchNorm2d)
        chosen = torch.arange(0, norm.num_features, 2)
        norm.weight[chosen], norm.bias[chosen] = 0.0, 0.0
        kept = derived.kept_names().get("features.7", list(range(64)))
        silent.extend(kept[channel] for channel in chosen.tolist())
        return derived

    tool = deriver(rounds=2, recovery_steps=1, convolutions="whole")
    left = set(tool.derive(BUDGET, silence).kept_names()["features.7"])
    assert len(silent) >= 20
    assert not left & set(silent)
    without = deriver(rounds=2, convolutions="whole").derive(BUDGET)
    assert set(without.kept_names()["features.7"]) & set(silent)


def test_a_round_is_trained_as_a_solved_start_is_at_the_end() -> None:
    tool = deriver(rounds=2)
    solved = tool.derive(BUDGET)
    teacher, before = tool.anatomy.model, state_digest(tool.anatomy.model)
    by_hand = netgraft.prepare(
        teacher,
        copy.deepcopy(solved.student),
        photographs(),
        method=replace(SHORT, join_steps=5),
        views=VIEW_POLICIES["plain"],
        runner=RUNNER,
        derivation=solved,
    ).run()
    start = {name: value.clone() for name, value in solved.student.state_dict().items()}
    trained = training(tool)(1, lambda: solved)
    assert trained is not None
    assert state_digest(trained.student) == state_digest(by_hand.student)
    assert (trained.recovery_steps, trained.recovery_seconds > 0) == (5, True)
    after = trained.student.state_dict()
    assert not torch.equal(after["features.7.weight"], start["features.7.weight"])
    # statistics of batch norms stay those of the solve
    assert all(torch.equal(after[name], start[name]) for name in start if "running" in name)
    assert state_digest(teacher) == before
    assert training(tool)(1, lambda: None) is None


def test_netgraft_s_settings_hold_between_rounds_too_and_another_method_leaves_the_defaults() -> None:
    own = NetGraft(objective="kl", batch_size=7, maps_weight=0.1, block_steps=(9,), steps=70, adapters="trained")
    expected = NetGraft(
        objective="kl",
        batch_size=7,
        maps_weight=0.1,
        block_steps=(0,),
        joins="at-once",
        join_steps=3,
        adapters="frozen",
    )
    assert recovering(own, 3) == expected
    default = NetGraft(block_steps=(0,), joins="at-once", adapters="frozen", maps_weight=0.3, join_steps=3)
    assert recovering(KD(), 3) == default


# --- in a run folder


def job(out: str, *, resume: bool = False, **options: Any) -> DistillJob:
    asked = DerivingOptions(**{"rounds": 3, "recovery_steps": 5, **options})
    compute = DeviceOptions(precision="32", accelerator="cpu")
    settings = {"steps": "4"}
    return DistillJob(
        shots=2,
        views="plain",
        keep="macs=0.3",
        deriving=asked,
        settings=settings,
        compute=compute,
        out=Path(out),
        resume=resume,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return job(str(tmp_path_factory.mktemp("whole") / "run")).run()


def test_steps_between_rounds_are_counted_and_those_without_are_as_ever(whole: dict[str, Any]) -> None:
    assert whole["steps"] == 2 * 5 + 4
    assert whole["derived"]["recovery_steps"] == 2 * 5
    assert 0 < whole["derived"]["recovery_seconds"] < whole["train_seconds"]
    without = job("without", rounds=1, recovery_steps=0).run()
    assert without["steps"] == 4
    assert set(whole["derived"]) - set(without["derived"]) == {"recovery_steps", "recovery_seconds"}
    assert without["fingerprint"] != whole["fingerprint"]


def killed(out: str, *, steps: int | None = None, at: str = "") -> SilentReporter:
    """Begin a run that is stopped after so many steps, or killed where something is said; return who heard it."""

    class Reporter(SilentReporter):
        def note(self, text: str) -> None:
            if at and text.startswith(at):
                raise KeyboardInterrupt

    left = iter(range(steps if steps is not None else 10**6))
    with pytest.raises(KeyboardInterrupt if at else InterruptedRunError):
        job(out).run(Reporter(), stop=lambda: next(left, None) is None)
    return Reporter()


class Heard(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("stopped", "anew"),
    [
        ({"steps": 2}, ["round 2", "round 3"]),  # while the first round's student is trained
        ({"steps": 7}, ["round 3"]),
        ({"steps": 12}, []),  # at the end
        ({"at": "round 2 of 3"}, ["round 2", "round 3"]),  # while it is solved
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    whole: dict[str, Any], stopped: dict[str, Any], anew: list[str]
) -> None:
    killed("out", **stopped)
    heard = Heard()
    result = job("out", resume=True).run(heard)
    assert result["student_digest"] == whole["student_digest"]
    assert {**result["derived"], "recovery_seconds": 0} == {**whole["derived"], "recovery_seconds": 0}
    assert result["steps"] == whole["steps"]
    # what was solved isn't solved again
    assert [note[:7] for note in heard.said if note.endswith("is measured anew")] == anew


def test_in_python_a_run_goes_on_too(tmp_path: Path) -> None:
    def distill(folder: Path | None, **options: Any) -> netgraft.DistillationResult:
        return netgraft.distill(
            netgraft.load_teacher("digits_vgg7_bn"),
            images=photographs(),
            keep={"macs": 0.3},
            views=VIEW_POLICIES["plain"],
            deriving=DerivingOptions(rounds=2, recovery_steps=5),
            method=SHORT,
            runner=RUNNER,
            folder=folder,
            **options,
        )

    class Killed(SilentReporter):
        def note(self, text: str) -> None:
            if text.startswith("round 2"):
                raise KeyboardInterrupt

    whole = distill(None)
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path, reporter=Killed())
    again = distill(tmp_path, resume=True)
    assert state_digest(again.student) == state_digest(whole.student)
    assert whole.facts()["steps"] == again.facts()["steps"] == 5 + 4
    assert "between rounds: 5 steps in" in str(again)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "0.3", "--rounds", "1"], "there are no several rounds: rounds 1 asks for one; leave"),
        (["--keep", "0.9"], "there are no several rounds: the budget is reached in one; leave"),
        (["--keep", "0.3", "--init", "slice"], "there are no several rounds: init slice solves nothing; leave"),
        (["--keep", "0.3", "--allocation", "uniform"], "no several rounds: allocation uniform measures none; leave"),
        (
            ["--student", "digits_vgg7_bn_half"],
            "takes no --criterion, --allocation, --convolutions, --rounds or --recovery-steps",
        ),
        (
            ["--keep", "0.3", "--devices", "2", "--device", "cpu"],
            "trains between rounds in one process, not in 2; give",
        ),
    ],
)
def test_training_between_no_rounds_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ["distill", "--shots", "2", "--views", "plain", "--recovery-steps", "5", *arguments, "--out", "out"]
    assert said in fails(capsys, *request)
    assert not Path("out").exists()


def test_who_trains_nothing_can_not_recover() -> None:
    teacher = netgraft.load_teacher("digits_vgg7_bn")
    asked = DerivingOptions(rounds=2, recovery_steps=5)
    with pytest.raises(RequestError, match="asks for training between rounds, and deriving alone trains nothing"):
        netgraft.derive(teacher, photographs(), options=asked, views=VIEW_POLICIES["plain"])
    with pytest.raises(RequestError, match="a student that is given isn't derived; leave deriving out, or the student"):
        netgraft.distill(teacher, copy.deepcopy(teacher), photographs(), deriving=asked)


def test_it_is_said_beforehand_how_often_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    request = ["distill", "--shots", "2", "--keep", "0.3", "--rounds", "3", "--recovery-steps", "50", "--steps", "20"]
    assert run([*request, "--dry-run", "--json"]) == 0
    later = json.loads(capsys.readouterr().out)["later"]
    assert [line.split(":")[0] for line in later] == [
        "train all blocks behind round 1 of 3",
        "train all blocks behind round 2 of 3",
        "train blocks 1-4 of 4 together",
    ]
