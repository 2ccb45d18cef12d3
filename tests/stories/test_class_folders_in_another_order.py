"""Somebody's class folders are called otherwise than the alphabet would have them, and some classes are missing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from netgraft.cli.main import run

from netgraft.models.loading import load_teacher
from netgraft.models.students import load_student
from tests.support.cli import run_json
from tests.support.digit_words import WORDS, counted, save_teacher, write_digits


def test_classes_are_names_from_evaluation_to_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sorted(WORDS) != list(WORDS)
    digits = {word: digit for digit, word in enumerate(WORDS)}
    save_teacher(Path("model"))
    write_digits(Path("train"), dict(enumerate(WORDS)), each=4, test=False)
    write_digits(Path("test"), {digit: WORDS[digit] for digit in (1, 3, 8)}, each=15)

    evaluated = run_json(capsys, "evaluate", "model", "--data", "test")
    assert evaluated["matched_by"] == "names"
    assert (evaluated["images"], evaluated["classes_seen"]) == (45, 3)
    assert evaluated["top1"] == pytest.approx(counted(load_teacher("digits_vgg7_bn"), Path("test"), digits))

    request = ["distill", "--data", "train", "--shots", "4", "--teacher", "model", "--student", "digits_vgg7_bn_half"]
    request += ["--eval-data", "test", "--steps", "20", "--views", "plain", "--out", "run"]
    result = run_json(capsys, *request)
    assert result["teacher_top1"] == evaluated["top1"]
    assert result["student_top1"] == pytest.approx(counted(load_student("run/student"), Path("test"), digits))
    assert result["student_top1"] >= 80

    # the student answers by the teacher's names
    assert run(["predict", "run", "test", "--csv", "--quiet"]) == 0
    [_, *rows] = csv.reader(io.StringIO(capsys.readouterr().out))
    right = [Path(image).parent.name == answer for image, answer, _ in rows]
    assert 100 * sum(right) / len(right) == pytest.approx(result["student_top1"])
