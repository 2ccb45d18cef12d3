"""The command that computes grids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from netgraft.cli.main import run

from netgraft.evaluation.environment import processor
from netgraft.experiments.results import ResultStore
from netgraft.experiments.specification import Experiment

EXPERIMENT = """
title = "Small"
[common]
data = "digits"
precision = "32"
views = "plain"
shots = [1, 2]
[[run]]
method = "none"
[[run]]
method = "kd"
settings = { steps = 2 }
"""


@pytest.fixture(autouse=True)
def _experiment(_alone: None) -> None:
    Path("small.toml").write_text(EXPERIMENT)


def test_a_dry_run_shows_cells_commands_and_time_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "small.toml", "--dry-run"]) == 0
    shown, said = capsys.readouterr()
    assert all(f"{row}-{shots}shot-subset0" in shown for row in ("none", "kd") for shots in (1, 2))
    assert "distill --data digits --shots 2 --method kd" in " ".join(shown.split())
    assert "4 cells, 4 to compute: about" in shown
    assert shown.count("| ~ ") == 4
    assert "~ is a guess" in shown
    assert said.startswith("estimating the time: 0/4\n")
    assert [path.name for path in Path().iterdir()] == ["small.toml"]


def test_a_dry_run_tells_what_is_measured_from_what_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    cells = Experiment.load(Path("small.toml")).cells
    here = {"machine": processor(), "seconds": 7.0}
    for cell in cells[::2]:  # one shot of both rows
        ResultStore(Path("out")).store(cell, here)
    assert run(["benchmark", "small.toml", "--out", "out", "--dry-run", "--quiet"]) == 0
    shown, said = capsys.readouterr()
    assert said == ""
    times = [line.split("|")[3].strip() for line in shown.splitlines() if "distill" in line]
    assert times == ["finished", "7 s"] * 2
    assert "4 cells, 2 to compute: about 14 s" in shown
    assert "guess" not in shown


def test_a_grid_is_computed_and_not_again(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["benchmark", "small.toml", "--out", "out", "--only", "none-1shot", "--only", "none-2shot"]
    assert run(command) == 0
    said = capsys.readouterr()
    assert "2 cells in out" in said.out
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["none-1shot-subset0", "none-2shot-subset0"]
    assert "2 of 2 cells" in said.err
    first = json.loads(Path("out/none-1shot-subset0.json").read_text())
    assert (first["shots"], first["images"], first["row"]) == (1, 10, "none")
    assert Path("out/experiment.toml").read_text() == EXPERIMENT
    # the second cell read the teacher's answers of the first
    assert len(list(Path("out/work/answers").iterdir())) == 1
    assert run(command) == 0
    assert capsys.readouterr().err == ""


def test_failed_cells_are_named_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    weights = "steps = 2 }\nteacher_weights = 'no-such-file.safetensors'"
    Path("bad.toml").write_text(EXPERIMENT.replace("steps = 2 }", weights).replace("[1, 2]", "1"))
    assert run(["benchmark", "bad.toml", "--out", "out", "--workers", "2"]) == 1
    said = capsys.readouterr().err
    assert "1 of 2 cells failed; the same command tries them again\n  kd-1shot-subset0: " in said
    assert "no-such-file.safetensors" in said.rpartition("kd-1shot-subset0: ")[2]
    assert Path("out/none-1shot-subset0.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.toml"], "can't read the experiment no.toml"),
        (["small.toml", "--only", "fitnets"], "no cell's name has fitnets in it; the first are none-1shot-subset0"),
        (["small.toml", "--out", "small.toml/x"], "can't write into small.toml/x"),
        (["small.toml", "--gpus-per-cell", "1"], "--gpus-per-cell is for --ray alone; add that, or leave it out"),
        (["small.toml", "--ray", "--gpus-per-cell", "1.5"], "a whole number of GPUs, or a part of one, got 1.5"),
        (["small.toml", "--ray", "--device", "cuda", "--gpus-per-cell", "0"], "--device cuda needs GPUs; give more"),
    ],
)
def test_wrong_requests(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert run(["benchmark", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_ray_a_cluster_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netgraft.cli.benchmark.find_spec", lambda name: None)
    assert run(["benchmark", "small.toml", "--ray"]) == 2
    assert capsys.readouterr().err == (
        "netgraft: expected the package ray for --ray, got none; install it with pip install 'netgraft[ray]', or leave "
        "--ray out\n"
    )
    assert [path.name for path in Path().iterdir()] == ["small.toml"]
