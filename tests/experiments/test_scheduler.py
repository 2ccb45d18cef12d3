"""Grids: every cell once, whatever happens to the processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from netgraft.errors import RequestError
from netgraft.experiments.cell_process import CellRun
from netgraft.experiments.results import ResultStore
from netgraft.experiments.scheduler import Grid, on_this_machine
from netgraft.experiments.specification import Cell, Experiment
from netgraft.jobs.run_folder import RunFolder
from tests.support.held_runs import gate_at, hold_cells
from tests.support.processes import call

SMALL = """
title = "Small"
[common]
data = "digits"
shots = 1
precision = "32"
views = "plain"
[[run]]
method = "kd"
"""

KD = f"{SMALL}settings = {{ steps = 3 }}\n"


BROKEN_FIRST = KD.replace(
    "[[run]]",
    """[[run]]
name = "broken"
method = "kd"
teacher_weights = "no-such-file.safetensors"
teacher = "digits_vgg7_bn"
[[run]]""",
)


LONG = """
[[run]]
name = "long"
data = "digits"
shots = 1
method = "kd"
precision = "32"
views = "plain"
settings = { steps = 40 }
"""


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.reasons: dict[str, str] = {}
        self.results: dict[str, Mapping[str, Any]] = {}
        self.steps = 0

    def started(self, cell: Cell) -> None:
        self.events.append(("started", cell.name))

    def waiting(self, cell: Cell) -> None:
        self.events.append(("waiting", cell.name))

    def progressed(self, cell: Cell, event: Mapping[str, Any]) -> None:
        self.steps = max(self.steps, event.get("step", 0))

    def finished(self, cell: Cell, result: Mapping[str, Any]) -> None:
        self.events.append(("finished", cell.name))
        self.results[cell.name] = result

    def failed(self, cell: Cell, reason: str) -> None:
        self.events.append(("failed", cell.name))
        self.reasons[cell.name] = reason

    def left(self, cell: Cell, reason: str) -> None:
        self.events.append(("left", cell.name))
        self.reasons[cell.name] = reason


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # other work on the machine delays several threads that wait for one another many times over
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def never() -> bool:
    return False


def opened(folder: Path, text: str) -> tuple[Grid, tuple[Cell, ...], Path]:
    folder.mkdir(exist_ok=True)
    source = folder / "asked.toml"
    source.write_text(text)
    results = ResultStore(folder / "results")
    results.claim(source)
    return Grid(results), results.experiment().cells, source


def test_cells_are_computed_once_and_a_failure_stops_no_other(tmp_path: Path) -> None:
    grid, cells, _ = opened(tmp_path, BROKEN_FIRST)
    assert grid.pending(cells) == list(cells)
    notes = Notes()
    grid.run(cells, notes, never)
    broken, kd = (cell.name for cell in cells)
    assert notes.events == [
        *(("started", broken), ("failed", broken)),
        *(("started", kd), ("finished", kd)),
    ]
    assert "no-such-file.safetensors" in notes.reasons[broken]
    assert "exit code 2" in notes.reasons[broken]
    written = json.loads((grid.results.folder / f"{kd}.json").read_text())
    assert written == notes.results[kd]
    assert (written["steps"], written["row"], written["asked"]) == (3, "kd", cells[1].asked())
    assert {"versions", "machine", "teacher_digest", "subset", "plan", "seconds", "gap", "agreement"} <= set(written)
    assert "run_folder" not in written
    # only the one that failed is tried again, and what it has left is no result
    assert [cell.name for cell in grid.pending(cells)] == [broken]
    # what nobody needs any more is gone, but for the teacher's answers
    assert not grid.results.work(cells[1]).exists()
    assert (grid.results.scratch / "answers").exists()


def test_several_workers_compute_what_a_run_alone_does(tmp_path: Path) -> None:
    grid, cells, _ = opened(tmp_path, KD.replace("shots = 1", "shots = [1, 2]"))
    notes = Notes()
    with gate_at(tmp_path / "gate", step=1) as gate:

        def let_both_go() -> bool:
            if gate.reached == 2:
                gate.open()
            return False

        Grid(grid.results, workers=2, executor=gate.executor(on_this_machine)).run(cells, notes, let_both_go)
    assert not notes.reasons
    # both were at work before one was done
    assert [event for event, _ in notes.events] == ["started", "started", "finished", "finished"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = {cell.name: replace(cell.job(), out=tmp_path / cell.name).run() for cell in cells}
    finally:
        torch.set_num_threads(threads)
    assert len(alone) == 2
    assert {name: result["student_digest"] for name, result in notes.results.items()} == {
        name: result["student_digest"] for name, result in alone.items()
    }


def test_workers_share_the_threads_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import json, sys, torch; from pathlib import Path; folder = Path(sys.argv[1]); folder.mkdir(parents=True);"
        "(folder / 'result.json').write_text(json.dumps({'threads': torch.get_num_threads()}))"
    )

    def command(run: CellRun) -> list[str]:
        return [sys.executable, "-c", program, str(run.folder)]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(CellRun, "command", command)
    grid, cells, _ = opened(tmp_path, KD)
    notes = Notes()
    Grid(grid.results, workers=2).run(cells, notes, never)
    assert [result["threads"] for result in notes.results.values()] == [2]


def test_a_grid_that_is_stopped_goes_on_with_the_cell(tmp_path: Path) -> None:
    grid, cells, _ = opened(tmp_path, LONG)
    notes = Notes()
    with gate_at(tmp_path / "gate") as gate:
        replace(grid, executor=gate.executor(on_this_machine)).run(cells, notes, lambda: gate.reached == 1)
    assert notes.events == [("started", "long-1shot-subset0"), ("left", "long-1shot-subset0")]
    assert "goes on" in notes.reasons["long-1shot-subset0"]
    assert (grid.results.work(cells[0]) / "checkpoint.pt").exists()
    again = Notes()
    grid.run(grid.pending(cells), again, never)
    assert again.events == [("started", "long-1shot-subset0"), ("finished", "long-1shot-subset0")]
    assert again.results["long-1shot-subset0"]["steps"] == 40


STUBBORN = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
Path(sys.argv[1]).with_name("pid").write_text(str(os.getpid()))
time.sleep(600)
"""


def test_a_second_ctrl_c_kills_the_running_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CellRun, "command", lambda run: [sys.executable, "-c", STUBBORN, str(run.folder)])
    grid, cells, _ = opened(tmp_path, KD)
    noted = grid.results.work(cells[0]).with_name("pid")
    asked: list[bool] = []

    def twice() -> bool:
        if asked:
            raise KeyboardInterrupt
        if noted.exists() and noted.read_text():
            asked.append(True)
        return bool(asked)

    with pytest.raises(KeyboardInterrupt):
        grid.run(cells, Notes(), twice)
    assert not psutil.pid_exists(int(noted.read_text()))


SAVING = """
import json, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
folder = Path(sys.argv[1])
folder.mkdir()
if "subset0" in folder.name:
    while not folder.with_name("begun").exists():
        time.sleep(0.01)
    (folder / "result.json").write_text(json.dumps({"gap": 0.5}))
else:
    try:
        folder.with_name("begun").touch()
        time.sleep(600)
    except KeyboardInterrupt:
        (folder / "saved").touch()
        sys.exit(130)
"""


def test_cells_save_themselves_where_nobody_can_be_told_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CellRun, "command", lambda run: [sys.executable, "-c", SAVING, str(run.folder)])
    grid, cells, _ = opened(tmp_path, KD.replace("shots = 1", "shots = 1\nsubsets = [0, 1]"))

    class Unheard(Notes):
        def finished(self, cell: Cell, result: Mapping[str, Any]) -> None:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        replace(grid, workers=2).run(cells, Unheard(), never)
    assert grid.results.find(cells[0]) is not None
    assert (grid.results.work(cells[1]) / "saved").exists()


def test_the_first_rerun_takes_over_a_cell_that_outlives_its_killed_grid(tmp_path: Path) -> None:
    grid, cells, source = opened(tmp_path, LONG)

    class LettingGo(Notes):
        def waiting(self, cell: Cell) -> None:
            super().waiting(cell)
            gate.open()

    with gate_at(tmp_path / "gate") as gate:
        command = ["benchmark", str(source), "--out", str(grid.results.folder), "--workers", "8", "--quiet"]
        process = call(
            "hold_cells", str(gate.folder), *command, script=tmp_path / "run.py", module=hold_cells.__module__
        )
        while not gate.reached:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert RunFolder(grid.results.work(cells[0])).is_locked()
        # who is asked to stop doesn't wait any longer
        impatient = Notes()
        grid.run(cells, impatient, lambda: bool(impatient.events))
        assert impatient.events == [("waiting", "long-1shot-subset0")]
        notes = LettingGo()
        grid.run(grid.pending(cells), notes, never)
    assert notes.events == [(what, "long-1shot-subset0") for what in ("waiting", "started", "finished")]
    # the orphan came to its end; nothing of it is computed again
    assert notes.steps == 0
    assert notes.results["long-1shot-subset0"]["steps"] == 40


def test_commands_that_meet_in_a_cell_leave_it_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, cells, _ = opened(tmp_path, KD)
    folder = RunFolder(grid.results.work(cells[0]))
    # the first takes the folder when the second has looked already
    monkeypatch.setattr(CellRun, "command", lambda run: [sys.executable, "-c", "raise SystemExit(2)"])
    looks = iter([False, True])
    monkeypatch.setattr(RunFolder, "is_locked", lambda folder: next(looks))
    notes = Notes()
    with folder.lock():
        grid.run(cells, notes, never)
    assert notes.events == [("started", cells[0].name), ("left", cells[0].name)]


def test_a_result_that_another_command_stores_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, cells, _ = opened(tmp_path, KD)
    asked = grid.pending(cells)
    grid.results.store(cells[0], {"gap": 0.5, "run_folder": "there", "by_class": [], "differ_most": []})
    notes = Notes()
    grid.run(asked, notes, never)
    assert notes.events == [("finished", cells[0].name)]
    assert notes.results[cells[0].name]["gap"] == 0.5
    assert not {"run_folder", "by_class", "differ_most"} & notes.results[cells[0].name].keys()
    grid.results.path(cells[0]).unlink()
    # no process is at work in its folder, and yet it is somebody's
    after = Notes()
    with grid.results.lock(cells[0]):
        grid.run(asked, after, never)
    assert after.events == [("left", cells[0].name)]
    assert "another command" in after.reasons[cells[0].name]
    monkeypatch.setattr("netgraft.experiments.results.locked", unlockable)
    refused = Notes()
    grid.run(asked, refused, never)
    assert "can't lock kd-1shot-subset0" in refused.reasons[cells[0].name]


@contextmanager
def unlockable(path: Path) -> Iterator[None]:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    yield


def test_a_result_of_other_options_is_refused(tmp_path: Path) -> None:
    grid, cells, _ = opened(tmp_path, KD)
    grid.results.store(cells[0], {"gap": 0.0})
    assert grid.results.find(cells[0]) is not None
    _, other, _ = opened(tmp_path, KD.replace("steps = 3", "steps = 4"))
    with pytest.raises(RequestError, match=r"kd-1shot-subset0\.json was computed with another settings"):
        grid.pending(other)


@pytest.mark.parametrize("content", ["{", "[]", '{"gap": 1}', '{"asked": 3}'])
def test_a_damaged_result_is_refused(tmp_path: Path, content: str) -> None:
    grid, cells, _ = opened(tmp_path, KD)
    grid.results.path(cells[0]).write_text(content)
    with pytest.raises(RequestError, match=r"kd-1shot-subset0\.json is damaged .*remove it"):
        grid.pending(cells)


def test_a_file_that_both_are_is_kept(tmp_path: Path) -> None:
    grid, _, _ = opened(tmp_path, KD)
    copy = grid.results.folder / "experiment.toml"
    grid.results.claim(copy)
    assert Experiment.load(copy).title == "Small"
