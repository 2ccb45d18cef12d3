"""Requests that can't be meant: one sentence, the right exit code, nothing written."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from netgraft.cli.main import run
from PIL import Image

import netgraft
from benchmarks.attacks.bad_requests import REQUESTS, arguments_of, lay_out
from netgraft.errors import RequestError


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


def digits(count: int = 20) -> list[Image.Image]:
    return list(netgraft.open_data("digits").train.load_many(range(count)))


def teacher() -> Any:
    return netgraft.load_teacher("digits_vgg7_bn")


def half() -> Any:
    return timm.create_model("digits_vgg7_bn_half")


SHORT = netgraft.NetGraft(block_steps=(1,), join_steps=1)


PROGRAMS: dict[str, tuple[Callable[[], object], str]] = {
    "no such data": (lambda: netgraft.open_data("no-such-data"), "does not exist"),
    "an empty folder": (lambda: netgraft.open_data("results"), "expected images"),
    "a pipe": (lambda: netgraft.open_data("pipe"), "expected a folder"),
    "no such model": (lambda: netgraft.load_teacher("no_such_model"), "timm has no model"),
    "no such folder": (lambda: netgraft.load_teacher("local-dir:no-such-folder"), "no-such-folder"),
    "weights that are none": (lambda: netgraft.load_teacher("cifar_resnet8", weights=Path("empty")), "was not loaded"),
    "weights of another": (
        lambda: netgraft.load_teacher("cifar_resnet8", weights=Path("nan.safetensors")),
        "missing keys",
    ),
    "a size of nothing": (lambda: netgraft.load_teacher("digits_vgg7_bn", image_size=0), "at least 1 pixel"),
    "no student": (lambda: netgraft.load_student("plain"), "holds no student"),
    "a student from the hub": (lambda: netgraft.load_student("hub"), "architecture"),
    "no images": (lambda: netgraft.distill(teacher(), half(), []), "there are no images"),
    "no images to derive from": (lambda: netgraft.derive(teacher(), []), "there are no images"),
    "a student and a budget": (lambda: netgraft.distill(teacher(), half(), digits(), keep={"macs": 0.5}), "not both"),
    "another start": (lambda: netgraft.prepare(teacher(), half(), digits(), init="sideways"), "init"),
    "a start without weights": (lambda: netgraft.prepare(teacher(), half(), digits(), init=3), "init"),  # type: ignore[arg-type]
    "blocks of nothing": (lambda: netgraft.prepare(teacher(), half(), digits(), blocks=0), "blocks"),
    "too many blocks": (lambda: netgraft.prepare(teacher(), half(), digits(), blocks=99, init="slice"), "blocks"),
    "a budget of everything": (lambda: netgraft.derive(teacher(), digits(), {"macs": 2}), "between 0 and 1"),
    "a budget of nothing": (lambda: netgraft.derive(teacher(), digits(), {"macs": 1e-9}), "can't be met"),
    "a budget that is no number": (lambda: netgraft.derive(teacher(), digits(), {"macs": math.nan}), ""),
    "a budget of joules": (lambda: netgraft.derive(teacher(), digits(), {"joules": 3}), "joules"),
    "no such place": (lambda: netgraft.derive(teacher(), digits(), force={"no.such": 3}), "no.such"),
    "no such module": (lambda: netgraft.derive(teacher(), digits(), protect=["no.such"]), "no.such"),
    "infinite rate": (lambda: netgraft.NetGraft(block_lr=(math.inf,)), "block_lr"),
    "steps of a text": (lambda: netgraft.NetGraft(join_steps="many"), "join_steps"),  # type: ignore[arg-type]
    "no device": (lambda: netgraft.Runner(accelerator="tpu").fabric, "'tpu'"),
    "no processes": (lambda: netgraft.Runner(devices=0), "devices"),
    "no precision": (
        lambda: netgraft.distill(teacher(), half(), digits(), method=SHORT, runner=netgraft.Runner(precision="16")),
        "precision must be one of",
    ),
    "seconds that are none": (lambda: netgraft.Runner(checkpoint_seconds=math.nan), "checkpoint_seconds"),
    "too many shots": (lambda: netgraft.FewShotSubset.draw([0, 1], shots=3, seed=0, dataset="a"), ""),
    "a subset that is none": (lambda: netgraft.FewShotSubset.load(Path("list.json")), "list.json"),
    "no such cut": (lambda: netgraft.split(teacher(), probe=torch.zeros(2, 1, 8, 8), cuts=["no.such"]), "no.such"),
    "too many pieces": (lambda: netgraft.split(teacher(), probe=torch.zeros(2, 1, 8, 8), blocks=99), "blocks"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_told_in_one_sentence(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    request, words = PROGRAMS[program]
    with pytest.raises(RequestError) as refusal:
        request()
    said = str(refusal.value)
    assert words in said
    assert "\n" not in said
    assert contents(folder) == before


def test_the_table_is_long_and_of_all_commands() -> None:
    assert len(REQUESTS) >= 120
    commands = {request.split()[0] for request in REQUESTS if request}
    assert {"distill", "train", "evaluate", "split", "suggest", "methods", "subset", "benchmark", "table"} <= commands


@pytest.mark.parametrize("request_", ["distill --teacher no_such_model", "table no-such-folder"])
def test_a_process_of_its_own_says_the_same(request_: str, folder: Path) -> None:
    before = contents(folder)
    command = [sys.executable, "-P", "-m", "netgraft", *arguments_of(request_)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert REQUESTS.get(request_, "timm has no model") in done.stderr
    assert contents(folder) == before
