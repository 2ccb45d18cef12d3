"""Somebody has photographs in folders, no labels, and wants a model of half the size."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from pathlib import Path

import pytest
from netgraft.cli.main import run
from PIL import Image

from netgraft.data.sources import open_data
from tests.support.cli import run_json
from tests.support.digit_words import write_digits


def test_from_a_folder_of_photographs_to_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_digits(Path("photos"), {digit: "summer" if digit < 5 else "winter/snow" for digit in range(10)}, each=6)
    Path("photos/broken.png").write_bytes(b"no image")
    request = ["distill", "--data", "photos", "--images", "40", "--hold-out", "20", "--teacher", "digits_vgg7_bn"]
    request += ["--keep", "macs=0.5", "--steps", "20", "--views", "plain", "--out", "run"]

    # the broken file is named, and nothing is written
    assert run([*request, "--quiet"]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert not Path("run").exists()

    request.append("--skip-broken")
    assert run([*request, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "nothing was written" in shown.out
    assert {path.name for path in Path().iterdir()} == {"photos"}

    result = run_json(capsys, *request)
    assert result["held_out_images"] == 20
    assert result["agreement_low"] <= result["agreement"] <= result["agreement_high"]
    assert result["agreement"] >= 85
    assert 0.4 < result["macs"] / result["teacher_macs"] <= 0.5
    assert tomllib.loads(Path("run/config.toml").read_text())
    assert "<html" in Path("run/report.html").read_text()

    # photographs that it has never seen; the story's teller knows what they show
    test = open_data("digits").test
    assert test is not None
    assert test.labels is not None
    Path("new").mkdir()
    for number in range(50):
        test.load(200 + number).convert("RGB").resize((8, 8), Image.Resampling.NEAREST).save(f"new/{number:02}.png")
    assert run(["predict", "run", "new", "--csv", "--quiet"]) == 0
    [header, *rows] = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["image", "class", "confidence"]
    assert [name for name, _, _ in rows] == [f"{number:02}.png" for number in range(50)]
    right = [answer == str(test.labels[200 + number]) for number, (_, answer, _) in enumerate(rows)]
    assert sum(right) >= 45

    # the same again, from what the run wrote
    again = run_json(capsys, "distill", "--config", "run/config.toml", "--out", "again")
    assert again["agreement"] == result["agreement"]
    assert json.loads(Path("again/subset.json").read_text()) == json.loads(Path("run/subset.json").read_text())
