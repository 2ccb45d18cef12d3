"""A run's options are written as a file that repeats the run."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from netgraft.cli.main import run

from netgraft.jobs.config_file import overridden, read, written
from netgraft.jobs.distill import DistillJob
from netgraft.jobs.options import DistillOptions
from netgraft.jobs.train import SupervisedTraining, TrainJob
from netgraft.options import build
from netgraft.training.options import DeviceOptions
from tests.support.cli import QUICK, fails, run_json


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_is_repeated_by_its_file_and_overridden_by_options(capsys: pytest.CaptureFixture[str]) -> None:
    request = [*QUICK, "--precision", "32", "--join-lr", "1e-05", "--seed", "3", "--init", "slice"]
    first = run_json(capsys, *request, "--out", "first")
    content = tomllib.loads(Path("first/config.toml").read_text())
    assert content == {
        "shots": 2,
        "views": "plain",
        "init": "slice",
        "seed": 3,
        "precision": "32",
        "settings": {"block_steps": 2, "join_steps": 2, "join_lr": 1e-05},
    }
    again = run_json(capsys, "distill", "--config", "first/config.toml", "--out", "again")
    assert again["student_digest"] == first["student_digest"]
    assert again["fingerprint"] == first["fingerprint"]
    assert Path("again/config.toml").read_text() == Path("first/config.toml").read_text()
    options = ["--seed", "4", "--images", "12", "--join-steps", "3"]
    other = run_json(capsys, "distill", *options, "--config", "first/config.toml", "--out", "other")
    # three blocks of two steps, two joins of three
    assert (other["seed"], other["images"], other["shots"], other["steps"]) == (4, 12, None, 3 * 2 + 2 * 3)


def test_every_value_comes_back_as_it_was() -> None:
    asked: dict[str, Any] = {
        "data": 'a "quoted"\\folder\nünder\x7f',
        "teacher_weights": Path("my weights.pth"),
        "hold_out": 0.2,
        "labeled": True,
        "cache_gib": 1.0,
        "devices": 2,
        "settings": {
            "block_lr": "1e-3,2e-3",
            "objective": "kl",
            "whole_epochs": "true",
            "steps": "007",
            "join_lr": ".5",
        },
    }
    job = build(DistillJob, {**asked, "out": Path("run"), "resume": True})
    Path("config.toml").write_text(written(job, job.hyperparameters, command="distill"), encoding="utf-8")
    assert read(Path("config.toml"), DistillOptions) == asked


def test_a_training_says_its_recipe() -> None:
    recipe = SupervisedTraining(epochs=3, optimizer="adamw")
    job = TrainJob(model="resnet18", data="photos", recipe=recipe, compute=DeviceOptions(precision="32"))
    assert tomllib.loads(written(job, job.hyperparameters, command="train")) == {
        "model": "resnet18",
        "data": "photos",
        "precision": "32",
        "settings": {"epochs": 3, "optimizer": "adamw"},
    }


def test_options_that_exclude_one_another_are_replaced_together() -> None:
    values = {"shots": 3, "keep": "macs=0.5", "seed": 1}
    assert overridden(values, {"images": 9}) == {"keep": "macs=0.5", "seed": 1, "images": 9, "settings": {}}
    assert overridden(values, {"student": "resnet10t"})["student"] == "resnet10t"
    assert "keep" not in overridden(values, {"student": "resnet10t"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("shot = 3", "there is no option 'shot'; did you mean shots?"),
        ("out = 'run'", "there is no option 'out'"),
        ("shots = 'three'", "shots can't be 'three'"),
        ("shots = 2.5", "shots can't be 2.5"),
        ("labeled = 1", "labeled can't be 1"),
        ("init = 3", "init can't be 3"),
        ("hold_out = -1.0", "hold_out must be at least 0"),
        ("settings = 3", "a table of hyper-parameters"),
        ("[settings.deeper]\na = 1", "a table of hyper-parameters"),
        ("[settings]\njoin_step = 1", "no hyper-parameter 'join_step'"),
        ("method = 'netgrafd'", "no method 'netgrafd'"),
        ("shots = ", "expected a configuration in TOML"),
    ],
)
def test_what_a_file_may_not_say_is_one_sentence(content: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text(content)
    message = fails(capsys, "distill", "--config", "own.toml", "--quiet")
    assert said in message
    assert message.count("\n") == 1


def test_a_file_that_is_missing_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.toml" in fails(capsys, "distill", "--config", "nowhere.toml")


def test_the_method_of_a_file_has_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text('method = "kd"\nshots = 1\nviews = "plain"\n')
    result = run_json(capsys, "distill", "--config", "own.toml", "--temperature", "2", "--steps", "1", "--out", "run")
    assert (result["method"], result["settings"]) == ("kd", {"temperature": "2", "steps": "1"})


# --- netgraft train


TRAINING = ["train", "digits_vgg7_bn_half", "--data", "digits", "--precision", "32", "--epochs", "1"]


def test_a_training_is_repeated_by_its_file_and_overridden_by_options(capsys: pytest.CaptureFixture[str]) -> None:
    first = run_json(capsys, *TRAINING, "--lr", "0.05", "--seed", "3", "--out", "first")
    text = Path("first/config.toml").read_text()
    assert text.startswith("# netgraft train --config FILE repeats this run")
    assert tomllib.loads(text) == {
        "model": "digits_vgg7_bn_half",
        "data": "digits",
        "seed": 3,
        "precision": "32",
        "settings": {"epochs": 1, "lr": 0.05},
    }
    again = run_json(capsys, "train", "--config", "first/config.toml", "--out", "again")
    assert again["weights_digest"] == first["weights_digest"]
    assert again["fingerprint"] == first["fingerprint"]
    assert Path("again/config.toml").read_text() == text
    other = run_json(
        capsys, "train", "digits_vgg7_bn", "--batch-size", "400", "--config", "first/config.toml", "--out", "other"
    )
    # 1,197 images
    assert (other["model"], other["seed"], other["steps"]) == ("digits_vgg7_bn", 3, 3)
    assert "lr=0.05" in other["recipe"]


def test_each_command_names_what_the_other_ones_file_says(capsys: pytest.CaptureFixture[str]) -> None:
    Path("trained.toml").write_text('model = "digits_vgg7_bn"\ndata = "digits"\n')
    Path("distilled.toml").write_text("shots = 3\n")
    assert "there is no option 'model'" in fails(capsys, "distill", "--config", "trained.toml")
    assert "there is no option 'shots'" in fails(capsys, "train", "--config", "distilled.toml")
    Path("own.toml").write_text('model = "digits_vgg7_bn"\ndata = "digits"\n[settings]\nepoch = 3\n')
    assert "no hyper-parameter 'epoch'" in fails(capsys, "train", "--config", "own.toml")


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ([], "no MODEL and no --data;"),
        (["resnet18"], "no --data;"),
        (["--data", "digits"], "no MODEL;"),
        (["--config", "seed.toml"], "no MODEL and no --data;"),
    ],
)
def test_a_training_needs_a_model_and_images(
    asked: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("seed.toml").write_text("seed = 3\n")
    said = fails(capsys, "train", *asked)
    assert f"expected a model and labelled images, got {missing} give MODEL and --data FOLDER, or --config" in said


# --- dry runs


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--init", "slice", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not [*Path().iterdir()]
    assert "train block 2 of 4 inside the teacher: 2 steps, rate 0.0001" in shown
    assert "train blocks 2-4 of 4 together: 2 steps, rate 0.0001" in shown
    assert "steps in all, of 64 views each" in shown
    assert "288,618" in shown
    assert "84,650" in shown
    assert "time: about " in shown
    assert "memory: about " in shown
    assert "nothing was written" in shown
    assert run([*QUICK, "--keep", "macs=0.5", "--dry-run", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["student"] == "digits_vgg7_bn-macs0.5"
    assert "parameters" not in found["sizes"]
    assert found["later"][-1] == "train blocks 1-4 of 4 together: 2 steps of 64"
    assert found["seconds"] > 0
    assert not [*Path().iterdir()]


def test_a_dry_run_refuses_what_a_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ask for fewer shots" in fails(capsys, "distill", "--shots", "500", "--dry-run", "--quiet")
