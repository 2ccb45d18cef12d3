"""Somebody has a small model that knows something already, and wants it to listen to the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from netgraft.models.students import load_student
from tests.support.cli import run_json
from tests.support.digit_words import save_teacher, write_digits


def test_weights_are_kept_and_go_on_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_teacher(Path("model"))
    write_digits(Path("photos"), dict.fromkeys(range(10), "."), each=5, test=False)
    common = ["distill", "--data", "photos", "--images", "30", "--hold-out", "20", "--teacher", "model"]
    common += ["--student", "digits_vgg7_bn_half", "--views", "plain", "--method", "kd"]

    first = run_json(capsys, *common, "--steps", "60", "--out", "first")
    # as somebody else would hand it over: weights alone
    save_file(load_file("first/student/model.safetensors"), "mine.safetensors")

    # as it comes
    same = run_json(capsys, *common, "--student-weights", "mine.safetensors", "--steps", "0", "--out", "same")
    assert same["init"] == "kept"
    assert same["agreement"] == first["agreement"]
    own, kept = (load_student(folder).state_dict() for folder in ("first/student", "same/student"))
    assert all(torch.equal(value, kept[name]) for name, value in own.items())

    # and what it learns
    after = run_json(capsys, *common, "--student-weights", "mine.safetensors", "--steps", "20", "--out", "after")
    assert after["init"] == "kept"
    assert after["agreement"] >= 75
    learned = load_student("after/student").state_dict()
    assert any(not torch.equal(value, learned[name]) for name, value in own.items())
    # a start from nothing ends elsewhere in so few steps
    nothing = run_json(capsys, *common, "--init", "random", "--steps", "20", "--out", "nothing")
    assert nothing["init"] == "random"
    assert nothing["agreement"] < after["agreement"]
