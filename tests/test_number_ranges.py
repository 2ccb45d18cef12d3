"""Numbers that mean nothing are refused alike from the command line, from a file and from a program."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netgraft.errors import RequestError
from netgraft.experiments.specification import Experiment
from netgraft.jobs.distill import DistillJob
from netgraft.jobs.train import SupervisedTraining, TrainJob
from netgraft.methods.registry import METHODS, find
from netgraft.options import build, declared
from netgraft.plan import TrainingSchedule
from netgraft.training.options import DeviceOptions
from netgraft.training.runner import Runner
from tests.support.cli import fails

HUGE = 10**12


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(error: pytest.ExceptionInfo[RequestError], name: str) -> None:
    message = str(error.value)
    assert message.startswith(name), message
    assert "\n" not in message


@pytest.mark.parametrize("name", [*METHODS, "kd+at+rkd"])
def test_no_hyperparameter_of_any_method_is_infinite_or_of_another_type(name: str) -> None:
    kind = find(name)
    tried = 0
    for option in declared(kind).values():
        several = isinstance(option.default, tuple)
        wrong: list[Any] = ["much", [None]]
        if option.type in {float, tuple[float, ...]}:
            wrong += [math.nan, math.inf, -math.inf, np.float64("nan")]
        if option.type is not str:
            for value in wrong:
                tried += 1
                with pytest.raises(RequestError) as error:
                    kind(**{option.name: (value,) if several else value})
                said(error, option.name)
    assert tried


def test_numbers_of_numpy_are_numbers() -> None:
    method: Any = find("kd")
    assert method(steps=np.int64(5), lr=np.float32(0.5), kd_weight=1).steps == 5
    with pytest.raises(RequestError, match=r"^steps must be a whole number, not 5\.0"):
        method(steps=5.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": -1}, "steps of a phase must be from 0 to 100,000,000, not -1"),
        ({"steps": HUGE}, "not 1e+12"),
        ({"batch_size": 0}, "batch_size must be from 1"),
        ({"batch_size": HUGE}, "batch_size must be from 1"),
        *(
            ({"lr": value}, f"lr must be a finite number of at least 0, not {value}")
            for value in (math.nan, math.inf, -1.0)
        ),
        ({"adapter_lr": math.nan}, "adapter_lr must"),
        ({"weight_decay": -0.1}, "weight_decay must"),
        ({"weight_decay": math.inf}, "weight_decay must"),
    ],
)
def test_a_schedule_holds_numbers_that_training_can_use(changes: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {"steps": 0, "batch_size": 1, "lr": 0.0}
    TrainingSchedule(**good)
    with pytest.raises(RequestError) as error:
        TrainingSchedule(**{**good, **changes})
    assert words in str(error.value)


JOBS = [
    ("cache_gib", math.nan),
    ("cache_gib", math.inf),
    ("cache_gib", -1.0),
    ("cache_gib", 1e300),
    ("checkpoint_seconds", -5.0),
    ("devices", 1000),
    ("checkpoint_seconds", math.nan),
    ("image_size", 0),
    ("image_size", -5),
    ("image_size", HUGE),
    ("image_size", 32.5),
    ("looks", 0),
    ("devices", 0),
    ("seed", "one"),
    ("shots", 1.5),
    ("data", None),
    ("data", 5),
    ("labeled", "yes"),
    ("out", 3),
    ("out", "folder"),
]


@pytest.mark.parametrize(("name", "value"), JOBS)
def test_a_job_of_a_program_is_checked_when_it_is_made(name: str, value: object) -> None:
    with pytest.raises(RequestError) as error:
        build(DistillJob, {name: value})
    said(error, name)
    if name in declared(DeviceOptions):
        with pytest.raises(RequestError):
            Runner(**{name: value})  # type: ignore[arg-type]
    if name in declared(TrainJob):
        with pytest.raises(RequestError):
            build(TrainJob, {"model": "resnet18", "data": "digits", name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing", math.nan),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.5),
        ("weight_decay", -1.0),
        ("lr", math.inf),
        ("lr", -0.1),
        ("epochs", 0),
        ("epochs", HUGE),
        ("batch_size", 0),
    ],
)
def test_the_training_of_a_teacher_is_checked(name: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError) as error:
        SupervisedTraining(**{name: value})
    said(error, name)
    option = f"--{name.replace('_', '-')}={value}"
    assert name in fails(capsys, "train", "digits_vgg7_bn_half", "--data", "digits", option)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cache-memory", "nan"],
        ["--cache-memory", "inf"],
        ["--cache-memory", "-1"],
        ["--cache-memory", "1e300"],
        ["--checkpoint-seconds", "-5"],
        ["--checkpoint-seconds", "nan"],
        ["--image-size", "0"],
        ["--image-size", "1000000"],
        ["--block-steps", "1000000000000"],
        ["--block-steps", "-1"],
        ["--join-steps", "1000000000000"],
        ["--batch-size", "0"],
        ["--batch-size", "-3"],
        ["--batch-size", "1000000000000"],
        ["--block-lr", "nan"],
        ["--join-lr", "inf"],
        ["--temperature", "nan"],
        ["--method", "kd", "--steps", "1000000000000"],
        ["--method", "kd", "--temperature", "inf"],
        ["--method", "kd", "--kd-weight", "nan"],
        ["--method", "kd", "--weight-decay", "-1"],
        ["--method", "none", "--steps", "1000000000000"],
        ["--method", "ban", "--generations", "1000000000000"],
        ["--method", "dml", "--peers", "1000000000000"],
        ["--method", "one", "--branches", "1000000000000"],
    ],
)
def test_a_distillation_is_refused_before_anything_is_written(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "distill", "--shots", "1", *arguments)
    assert message.count("\n") == 1
    assert (arguments[-2].removeprefix("--").split("-")[-1]) in message


@pytest.mark.parametrize("command", [["split", "digits_vgg7_bn"], ["evaluate", "digits_vgg7_bn", "--data", "digits"]])
@pytest.mark.parametrize("size", ["0", "-1", "1000000"])
def test_commands_without_a_job_refuse_absurd_sizes_too(
    command: list[str], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "image_size must be at " in fails(capsys, *command, "--image-size", size)


@pytest.mark.parametrize(("name", "value"), [("image_size", HUGE), ("looks", 0), ("image_size", 0)])
def test_a_file_of_an_experiment_is_checked_when_it_is_read(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"^{name} must be at "):
        Experiment.parse({"run": [{"method": "kd", name: value}]})


@pytest.mark.parametrize(
    "settings",
    [
        "steps = 1_000_000_000_000",
        "lr = nan",
        "lr = inf",
        "weight_decay = -1.0",
        "batch_size = 0",
        "temperature = nan",
        "colour = 3",
        'steps = "many"',
        "steps = { a = 1 }",
    ],
)
def test_a_grid_with_such_settings_is_refused_before_anything_is_written(
    settings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("grid.toml").write_text(f'[[run]]\nmethod = "kd"\nsettings = {{ {settings} }}\n')
    message = fails(capsys, "benchmark", "grid.toml")
    assert message.count("\n") == 1
    assert settings.partition(" ")[0] in message


@pytest.mark.parametrize(
    ("name", "value"), [("teacher", ""), ("data", "a\0b"), ("out", Path("a\0b")), ("teacher", "a\0")]
)
def test_texts_that_no_command_line_holds_are_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError) as error:
        build(DistillJob, {name: value})
    said(error, name)
    if name != "out":
        with pytest.raises(RequestError, match=name):
            Experiment.parse({"run": [{name: value}]})


def test_a_file_in_the_place_of_the_folder_of_answers_is_refused_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("file").write_text("")
    assert "keep_answers" in fails(capsys, "distill", "--shots", "1", "--keep-answers", "file")
    assert "NUL" in fails(capsys, "table", "x\0")
    for target in ("file", "file/x"):
        assert "path that can be used" in fails(capsys, "subset", "--data", "digits", "--shots", "1", "--out", target)
    assert "no module ''" in fails(capsys, "split", "digits_vgg7_bn", "--cuts", "")
