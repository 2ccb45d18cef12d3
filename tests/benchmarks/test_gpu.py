"""The measurement on a GPU keeps its time, loses nothing, and takes no rehearsal for a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks.gpu import boxes, cifar100_teacher, marked_tests, published_table, rendering, steps, unrelated_student
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.boxes import ROOT, Part, environment_of_checkout, run_parts
from benchmarks.gpu.part import MEASURED, parts
from benchmarks.gpu.result_file import PartResult, Setting, begun
from benchmarks.gpu.table import SENTENCES, table
from netgraft.errors import InterruptedRunError
from netgraft.experiments.results import ResultStore
from netgraft.experiments.specification import Experiment

FACTS = {"tiny": True, "device": "cpu", "machine": "A"}

WRITE = """
import json, pathlib, signal, subprocess, sys, time
path = pathlib.Path({path!r})
def put(**what):
    content = json.loads(path.read_text())
    content["measured"].update(what)
    path.write_text(json.dumps(content))
"""


def fake(out: Path, name: str, program: str, share: float = 10.0) -> Part:
    """A part that is a small program without imports that take long."""
    start = WRITE.format(path=str(out / f"{name}.json"))
    return Part(name, f"what {name} answers", share, lambda seconds: [sys.executable, "-S", "-c", start + program])


def content(out: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((out / f"{name}.json").read_text(encoding="utf-8")))


def ignored(line: str) -> None:
    pass


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


BEGAN = 'path.with_suffix(".began").touch()\n'
"""What a program says when its box may close."""


def start_boxes_behind(monkeypatch: pytest.MonkeyPatch, began: Path) -> None:
    """Let the time of a process be counted from when it has begun, however long that takes on a busy machine."""

    class Begun(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            while self.poll() is None and not began.exists():
                time.sleep(0.01)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Begun)


def test_a_part_that_overruns_is_ended_with_all_that_it_started_and_the_next_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = """
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
put(child=child.pid, half="kept")
%s
time.sleep(600)
"""
    start_boxes_behind(monkeypatch, tmp_path / "endless.began")
    every = [fake(tmp_path, "endless", endless % BEGAN, 1.0), fake(tmp_path, "next", "put(answer=42)", 599.0)]
    assert not run_parts(every, tmp_path, 600.0, FACTS, say=ignored)
    ended = content(tmp_path, "endless")
    assert (ended["finished"], ended["ended"]) == (False, "ended by its time box, killed")
    assert ended["measured"]["half"] == "kept"
    deadline = time.monotonic() + 300
    while alive(ended["measured"]["child"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done = content(tmp_path, "next")
    assert (done["finished"], done["ended"], done["measured"]) == (True, None, {"answer": 42})
    assert {name: done[name] for name in FACTS} == FACTS


def test_a_part_is_asked_to_stop_before_it_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "GRACE", (0.999, 600.0))
    start_boxes_behind(monkeypatch, tmp_path / "polite.began")
    polite = """
def stop(number, frame):
    put(saved=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
put(began=True)
%s
time.sleep(600)
"""
    assert not run_parts([fake(tmp_path, "polite", polite % BEGAN)], tmp_path, 600.0, FACTS, say=ignored)
    ended = content(tmp_path, "polite")
    assert (ended["finished"], ended["ended"]) == (False, "ended by its time box")
    assert ended["measured"] == {"began": True, "saved": True}


def test_what_is_finished_is_skipped_and_what_failed_is_tried_again_with_what_it_had(tmp_path: Path) -> None:
    count = f"""
runs = pathlib.Path({str(tmp_path)!r}, "runs")
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
"""
    fails = """
had = json.loads(path.read_text())["measured"]
put(second=had.get("first"), first=1)
sys.exit("out of something" if "first" not in had else 0)
"""
    every = [fake(tmp_path, "counted", count), fake(tmp_path, "fails", fails), fake(tmp_path, "last", "put(last=1)")]
    assert not run_parts(every, tmp_path, 600.0, FACTS, say=ignored)
    failed = content(tmp_path, "fails")
    assert (failed["finished"], failed["ended"]) == (False, "failed with exit code 1")
    assert failed["last_lines"] == ["out of something"]
    assert content(tmp_path, "last")["finished"]
    said: list[str] = []
    assert run_parts(every, tmp_path, 600.0, FACTS, say=said.append)
    assert (tmp_path / "runs").read_text(encoding="utf-8") == "x"
    again = content(tmp_path, "fails")
    assert (again["finished"], again["ended"], again["measured"]) == (True, None, {"first": 1, "second": 1})
    assert "last_lines" not in again
    assert again["seconds"] > failed["seconds"]
    assert said[:2] == ["counted: finished before", "last: finished before"]


def test_time_that_a_part_leaves_is_shared_by_the_later_ones(tmp_path: Path) -> None:
    given: list[float] = []

    def noted(seconds: float) -> list[str]:
        given.append(seconds)
        return [sys.executable, "-S", "-c", ""]

    every = [Part(str(number), "", share, noted) for number, share in enumerate((3.0, 1.0, 1.0))]
    run_parts(every, tmp_path, 1000.0, FACTS, say=ignored)
    grace = 20.0
    assert given == pytest.approx([600 - grace, 500 - grace, 1000 - grace], abs=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected a CUDA device, got none that PyTorch sees"),
        (["--device", "cpu"], "add --tiny to rehearse"),
        (["--device", "cpu", "--tiny", "--minutes", "0"], "expected more than 0 minutes, got 0"),
        (["--device", "cpu", "--tiny", "--minutes", "nan"], "expected more than 0 minutes, got nan"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "results"), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("benchmarks.gpu: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("had", "said"),
    [
        ('{"tiny": false, "device": "cuda:0", "machine": "A GPU"}', "measured with tiny False, device cuda:0"),
        ("[]", "is no result of this command"),
        ("{", "is no result of this command"),
    ],
)
def test_another_measurement_in_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], had: str, said: str
) -> None:
    (tmp_path / "steps.json").write_text(had, encoding="utf-8")
    assert main(["--out", str(tmp_path), "--device", "cpu", "--tiny"]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "steps.json").read_text(encoding="utf-8") == had


def test_the_parts_share_all_of_the_time_and_each_has_a_module_and_a_row(tmp_path: Path) -> None:
    every = parts(tmp_path, "cpu", tiny=True)
    assert sum(part.share for part in every) == pytest.approx(1)
    assert [part.name for part in every] == [*MEASURED] == [*SENTENCES]
    for part in every:
        assert (ROOT / "benchmarks" / "gpu" / f"{part.name.replace('-', '_')}.py").exists()
        assert "--tiny" in part.command(1.0)


def test_a_checkout_that_is_not_installed_has_its_command_line() -> None:
    program = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
        "import netgraft.cli.main, benchmarks; print(netgraft.cli.main.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment_of_checkout(), capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == ROOT / "cli" / "main.py"


def test_another_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n", encoding="utf-8")
    environment = environment_of_checkout()
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    done = subprocess.run([sys.executable, "-P", "-c", ""], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "theirs\n"


def test_tests_are_counted_as_pytest_reports_them(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="one"/>'
        '<testcase classname="a" name="two"><failure message="assert 1 == 2&#10;more">long</failure></testcase>'
        '<testcase classname="a" name="three"><error message="no such fixture"/></testcase>'
        '<testcase classname="b" name="four"><skipped message="needs a CUDA device"/></testcase>'
        "</testsuite></testsuites>",
        encoding="utf-8",
    )
    assert marked_tests.summary(report) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "reasons": {
            "a.two": "failed: assert 1 == 2",
            "a.three": "failed: no such fixture",
            "b.four": "skipped: needs a CUDA device",
        },
    }


def test_the_published_table_has_the_default_of_twelve_shots_and_five_subsets(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    assert published_table.summary(published_table.TABLE, store) == {"cells": 0, "of": 60, "by shots": {}}
    cells = [cell for cell in Experiment.load(published_table.TABLE).cells if cell.row == published_table.ROW]
    # the command takes those with the row's name in their own
    named = [cell for cell in Experiment.load(published_table.TABLE).cells if published_table.ROW in cell.name]
    assert cells == named
    for cell, right in zip([cell for cell in cells if cell.options["shots"] == 10][:2], (90.0, 91.0), strict=True):
        store.store(cell, {"shots": 10, "student_top1": right, "gap": 1.0, "agreement": 95.0, "seconds": 3.0})
    found = published_table.summary(published_table.TABLE, store)
    assert (found["cells"], found["of"]) == (2, 60)
    row = {"subsets": 2, "student_top1": 90.5, "gap": 1.0, "agreement": 95.0, "seconds": 3.0}
    assert found["by shots"] == {"10": row}


@pytest.fixture
def rehearsal(tmp_path: Path) -> Callable[..., tuple[Setting, PartResult]]:
    def of(name: str, seconds: float = 600.0) -> tuple[Setting, PartResult]:
        (tmp_path / "work").mkdir(exist_ok=True)
        return Setting("cpu", True, tmp_path, time.time() + seconds), begun(tmp_path / f"{name}.json", FACTS)

    return of


Rehearsal = Callable[..., tuple[Setting, PartResult]]


def test_rendering_is_rehearsed(rehearsal: Rehearsal) -> None:
    setting, result = rehearsal("rendering")
    rendering.measure(setting, result)
    rates = {name: row["views a second"] for name, row in result.measured.items() if isinstance(row, dict)}
    assert rates.keys() == {
        f"{policy}, {side} pixels, {where}"
        for policy in ("rich", "rich-endless", "crop", "plain")
        for side in (32, 224)
        for where in ("CPU", "device")
    }
    assert min(rates.values()) > 0


def test_steps_are_rehearsed(rehearsal: Rehearsal) -> None:
    setting, result = rehearsal("steps")
    steps.measure(setting, result)
    found = result.measured
    assert found["left out"].startswith("CUDA graphs, which need a CUDA device")
    for precision in ("bf16", "32"):
        assert set(found[precision]["ratios"]) == {"steps", "filling"}
        assert found[precision]["precision"] == precision
    assert result.content["dtype"] == ["32", "bf16"]


def test_a_teacher_is_rehearsed(rehearsal: Rehearsal) -> None:
    setting, result = rehearsal("cifar100-teacher")
    cifar100_teacher.measure(setting, result)
    row = result.measured["teacher"]
    assert (row["test_images"], row["steps"]) == (20, 2)
    assert 0 <= row["top1"] <= 100


def test_a_student_is_measured_where_its_time_ends_and_goes_on_where_there_is_more(rehearsal: Rehearsal) -> None:
    setting, result = rehearsal("unrelated-student", seconds=-1.0)
    with pytest.raises(InterruptedRunError, match="0 of 256 samples were seen"):
        unrelated_student.measure(setting, result)
    before = result.measured["student"]
    assert (before["samples"], before["of"]) == (0, 256)
    setting, result = rehearsal("unrelated-student")
    unrelated_student.measure(setting, result)
    after = result.measured["student"]
    assert (after["samples"], after["of"]) == (256, 256)
    assert 0 <= after["student_top1"] <= 100
    assert after["teacher_top1"] == 100


def write(folder: Path, name: str, measured: dict[str, Any], **other: Any) -> None:
    result = {
        **{"part": name, "tiny": False, "device": "cuda:0", "machine": "A GPU", "cores": 8, "finished": True},
        **{"ended": None, "seconds": 12.4, "versions": {"driver": "580.1", "torch": "2.14.1"}, "measured": measured},
        **other,
    }
    (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


def test_the_table_says_what_was_found_and_what_was_not_measured(tmp_path: Path) -> None:
    write(tmp_path, "marked-tests", {"tests": {"passed": 7, "failed": 0, "skipped": 1, "reasons": {}}})
    student = {"samples": 5_000_000, "of": 20_000_000, "student_top1": 81.25, "teacher_top1": 89.47, "agreement": 83.0}
    write(tmp_path, "unrelated-student", {"student": student}, finished=False, ended="ended by its time box")
    lines = table(tmp_path).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    assert rows["marked-tests"].endswith("| 7 passed; 1 skipped | 12 |")
    assert rows["unrelated-student"].endswith(
        "| 81.25 % of the teacher's 89.47 % after 5,000,000 samples (ended by its time box) | 12 |"
    )
    assert rows["steps"].endswith("| not measured yet |  |")
    assert lines[-1] == "A GPU, driver 580.1; torch 2.14.1, 8 cores."


@pytest.mark.parametrize("other", [{"tiny": True}, {"device": "cpu"}])
def test_a_rehearsal_is_no_result(tmp_path: Path, other: dict[str, Any]) -> None:
    write(tmp_path, "steps", {}, **other)
    with pytest.raises(ValueError, match="is of a rehearsal, and no result"):
        table(tmp_path)


def test_results_of_two_machines_make_no_table(tmp_path: Path) -> None:
    write(tmp_path, "steps", {})
    write(tmp_path, "rendering", {}, machine="Another GPU")
    with pytest.raises(ValueError, match="of several machines"):
        table(tmp_path)
