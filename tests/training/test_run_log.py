"""A run's log for other programs: the lines of metrics.jsonl and the result's figures, also over a resume."""

from __future__ import annotations

import csv
import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from netgraft.cli.main import run

from netgraft.errors import InterruptedRunError, RequestError, RunError
from netgraft.training import options
from netgraft.training.run_log import RunLog, log_figures
from netgraft.training.runner import Runner
from tests.support.cli import QUICK, fails
from tests.support.tiny_plan import LONG, Case, Squared

Series = dict[str, list[tuple[int, float]]]


def logging(kind: str) -> Runner:
    # no checkpoint within a phase: what was logged behind the last one is logged again
    return Runner(accelerator="cpu", precision="32", checkpoint_seconds=1e9, log=kind)


def of_csv(folder: Path) -> Series:
    found: Series = {}
    with (folder / "log" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault(name, []).append((int(row["step"]), float(value)))
    return found


def of_tensorboard(folder: Path) -> Series:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder / "log" / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


READERS: dict[str, Callable[[Path], Series]] = {"csv": of_csv, "tensorboard": of_tensorboard}


def expected(folder: Path) -> Series:
    """What metrics.jsonl says, over the steps of the whole plan."""
    found: Series = {name: [] for name in ("loss", "loss/squared", "lr", "phase")}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row["step"] + (LONG[0].steps if row["phase"] else 0)
        for name, value in (("loss", row["squared"]), ("loss/squared", row["squared"]), ("lr", row["lr"])):
            found[name].append((step, value))
        found["phase"].append((step, row["phase"] + 1))
    return found


def assert_same(found: Series, wanted: Series) -> None:
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("stop_at", [0, 11, 12, 27, 33])
def test_a_log_goes_on_where_the_run_does(
    kind: str, stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "tensorboard":
        # its files are read in the order of their names, which begin with the second: nobody resumes within one
        writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
        seconds = itertools.count(1_700_000_000)
        monkeypatch.setattr(writer, "time", SimpleNamespace(time=lambda: next(seconds)))
    asked = iter(range(100))

    def fail() -> None:
        raise MemoryError

    # stopped with a checkpoint, and then killed without one
    with pytest.raises(InterruptedRunError):
        Case(schedules=LONG).run(runner=logging(kind), folder=tmp_path, stop=lambda: next(asked) == stop_at)
    if stop_at < 33:
        with pytest.raises(MemoryError):
            Case(schedules=LONG, objective=Squared(33 - stop_at, fail)).run(
                runner=logging(kind), folder=tmp_path, resume=True
            )
        assert max(step for step, _ in READERS[kind](tmp_path)["lr"]) == 32
    Case(schedules=LONG).run(runner=logging(kind), folder=tmp_path, resume=True)
    wanted = expected(tmp_path)
    assert [step for step, _ in wanted["lr"]] == [10, 12, 22, 32, 35]
    assert_same(READERS[kind](tmp_path), wanted)
    log_figures(kind, tmp_path, {"steps": 35, "gap": 0.25, "agreement": None, "parameters": 7, "plan": "x"})
    assert_same(READERS[kind](tmp_path), {**wanted, "final/gap": [(35, 0.25)], "final/parameters": [(35, 7)]})


STAND_IN = """
class Settings(dict):
    pass

class Run:
    def __init__(self, **asked):
        self.asked, self.id, self.logged, self.config, self.ended = asked, asked["id"], [], {}, None
    def log(self, metrics, step=None):
        self.logged.append((step, metrics))
    def finish(self, exit_code=None):
        self.ended = exit_code

RUNS = []

def init(**asked):
    RUNS.append(Run(**asked))
    return RUNS[-1]
"""


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "stand-in"))
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    folder, asked = tmp_path / "my run", iter(range(100))
    folder.mkdir()
    with pytest.raises(InterruptedRunError):
        Case(schedules=LONG).run(runner=logging("wandb"), folder=folder, stop=lambda: next(asked) == 11)
    Case(schedules=LONG).run(runner=logging("wandb"), folder=folder, resume=True)
    log_figures("wandb", folder, {"steps": 35, "gap": 0.25})
    runs: list[Any] = importlib.import_module("wandb").RUNS
    assert len({run.id for run in runs}) == 1
    assert [(run.asked["name"], run.asked["resume"], run.ended) for run in runs] == [("my run", "allow", 0)] * 3
    assert [step for run in runs for step, _ in run.logged] == [10, 12, 22, 32, 35, 35]
    assert runs[2].logged == [(35, {"final/gap": 0.25})]
    wanted = expected(folder)
    logged = [metrics for run in runs[:2] for _, metrics in run.logged]
    assert [metrics["lr"] for metrics in logged] == [value for _, value in wanted["lr"]]


def test_the_command_logs_and_makes_the_same_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*QUICK, "--precision", "32", "--quiet", "--out"]
    assert run([*asked, "plain"]) == 0
    assert run([*asked, "logged", "--log", "csv"]) == 0
    plain, logged = (json.loads(Path(name, "result.json").read_text()) for name in ("plain", "logged"))
    for name in ("fingerprint", "student_digest", "options"):
        assert plain[name] == logged[name]
    assert not Path("plain/log").exists()
    found = of_csv(Path("logged"))
    for name in ("student_top1", "gap", "agreement", "macs", "latency_ms_64"):
        assert found[f"final/{name}"] == [(logged["steps"], logged[name])]
    terms = [name for name in found if name.startswith("loss/")]
    assert [value for _, value in found["loss"]] == pytest.approx(
        [sum(dict(found[name]).get(step, 0.0) for name in terms) for step, _ in found["loss"]]
    )


def test_a_missing_package_is_named_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    for command in (["distill"], ["train", "digits_vgg7_bn", "--data", "digits"]):
        for kind in ("tensorboard", "wandb"):
            said = fails(capsys, *command, "--log", kind)
            assert f"expected the package {kind} for --log {kind}, got none; install it with pip install" in said
    assert "'tensorboard', 'wandb', 'csv'" in fails(capsys, "distill", "--log", "mlflow")


def test_wrong_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="log must be one of tensorboard, wandb, csv, not 'mlflow'"):
        Runner(log="mlflow")
    with pytest.raises(RequestError, match="expected a folder for the log csv, got none"):
        Case().run(runner=logging("csv"))
    (tmp_path / "log").write_text("in the way")
    with pytest.raises(RunError, match="could not write the log of"):
        RunLog("csv", tmp_path, steps=(1,), upto=0)
