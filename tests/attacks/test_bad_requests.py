"""Requests that can't be meant: one sentence, the right exit code, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from netgraft.cli.main import run

from benchmarks.attacks.bad_requests import REQUESTS, arguments_of, lay_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("asked")
    lay_out(made)
    return made


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.lstat() for path in folder.rglob("*")}
    # a folder says when a lock in it came and went
    return {str(path): (0 if path.is_dir() else facts.st_mtime_ns, facts.st_size) for path, facts in found.items()}


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_a_bad_request_is_one_sentence(
    request_: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    code = run(arguments_of(request_))
    printed, said = capfd.readouterr()
    if not request_:  # the command alone explains itself
        assert (code, printed[:6]) in {(2, ""), (0, "Usage:")}
        return
    assert code == 2
    assert printed == ""
    assert said.startswith("netgraft: ")
    assert said.count("\n") == 1
    assert len(said) < 1500
    assert REQUESTS[request_].lower() in said.lower()
    assert "Error:" not in said
    assert contents(folder) == before


def test_the_table_is_long_and_of_all_commands() -> None:
    assert len(REQUESTS) >= 120
    commands = {request.split()[0] for request in REQUESTS if request}
    assert {"distill", "train", "evaluate", "split", "methods", "subset", "benchmark", "table"} <= commands


@pytest.mark.parametrize("request_", ["distill --teacher no_such_model", "table no-such-folder"])
def test_a_process_of_its_own_says_the_same(request_: str, folder: Path) -> None:
    before = contents(folder)
    command = [sys.executable, "-P", "-m", "netgraft", *arguments_of(request_)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert REQUESTS.get(request_, "timm has no model") in done.stderr
    assert contents(folder) == before
