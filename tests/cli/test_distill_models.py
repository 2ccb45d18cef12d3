"""Models that are not as their names alone make them: other image sizes, students with fewer residual blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from netgraft.cli.main import run
from safetensors.torch import save_file

import netgraft.zoo  # noqa: F401 (registers the names that timm is asked for)
from tests.support.cli import QUICK, fails, run_json


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_images_of_another_size_than_the_model_was_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    plain, size = ["train", "digits_vgg7_bn", "--data", "digits", "--epochs", "1"], ["--image-size", "16"]
    small = run_json(capsys, *plain, "--out", "small")
    large = run_json(capsys, *plain, *size, "--out", "large")
    assert (small["input_size"], large["input_size"]) == ([1, 8, 8], [1, 16, 16])
    # convolutions and their norms see four times as many places
    assert 3.9 < large["macs"] / small["macs"] < 4.0
    weights = ["--teacher-weights", "large/model/model.safetensors"]
    evaluate = ["evaluate", "digits_vgg7_bn", "--data", "digits", *weights]
    assert run_json(capsys, *evaluate, *size)["top1"] == large["top1"]
    assert run_json(capsys, *evaluate)["macs"] == small["macs"]
    assert "large/model brings its image size along" in fails(capsys, "evaluate", "large/model", *evaluate[2:4], *size)
    distilled = run_json(capsys, *QUICK, *weights, *size, "--out", "run")
    assert (distilled["teacher_top1"], distilled["teacher_macs"]) == (large["top1"], large["macs"])
    tiny = ["--image-size", "1"]
    assert "SmallVGG can't take images of 1x1x1" in fails(capsys, *plain, *tiny)
    assert "SmallVGG can't take images of 1x1x1" in fails(capsys, *evaluate, *tiny)
    described = json.loads(Path("run/student/config.json").read_text())["pretrained_cfg"]
    assert (described["input_size"], described["crop_pct"]) == ([1, 16, 16], 1.0)


def test_residual_blocks_that_were_left_out_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = timm.create_model("cifar_resnet20")
    save_file(teacher.state_dict(), "teacher.safetensors")
    models = ["--teacher", "cifar_resnet20", "--student", "cifar_resnet8", "--teacher-weights", "teacher.safetensors"]
    assert run([*QUICK, *models, "--image-size", "8", "--out", "run"]) == 0
    names = [f"layer{stage}.{number}" for stage in (1, 2, 3) for number in (1, 2)]
    assert f"initialisation of the others: slice, without {', '.join(names)}\n" in capsys.readouterr().out
    assert json.loads(Path("run/result.json").read_text())["left_out"] == names
