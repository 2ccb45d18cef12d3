"""A bit that is another one, in any file that a run believes, is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from netgraft.cli.main import run

from benchmarks.attacks.commands import carry_out
from benchmarks.attacks.damage import flip, some_bits
from benchmarks.attacks.file_events import killing
from benchmarks.attacks.kills import command, digest_of, whole
from benchmarks.attacks.rotation import rotation
from netgraft.errors import RequestError
from netgraft.jobs.run_folder import RunFolder
from netgraft.models.students import load_student
from netgraft.training.checkpoint import Checkpoint

BITS = 150


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("done")
    assert run(command("kd", folder)) == 0
    return folder / "run"


def test_of_a_checkpoint(done: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(done / "checkpoint.pt", tmp_path))
    fingerprint = str(torch.load(path, weights_only=True)["fingerprint"])
    Checkpoint.load(path, fingerprint)
    for bit in some_bits(path, BITS, rotation()):
        flip(path, bit)
        with pytest.raises(
            RequestError, match=r"checkpoint\.pt is no checkpoint of netgraft, or a damaged one"
        ) as said:
            Checkpoint.load(path, fingerprint)
        assert "\n" not in str(said.value)
        flip(path, bit)
    Checkpoint.load(path, fingerprint)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_of_a_student(done: Path, tmp_path: Path, name: str) -> None:
    student = tmp_path / "student"
    shutil.copytree(done / "student", student)
    load_student(student)
    for bit in some_bits(student / name, BITS, rotation()):
        flip(student / name, bit)
        with pytest.raises(RequestError, match=f"{name} is damaged: expected SHA-256") as said:
            load_student(student)
        assert "\n" not in str(said.value)
        flip(student / name, bit)
    load_student(student)


def test_of_a_result(done: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(done, folder.path)
    path = folder.path / "result.json"
    for bit in some_bits(path, BITS, rotation()):
        flip(path, bit)
        with pytest.raises(RequestError, match=r"result\.json is damaged") as said:
            folder.finished()
        assert "\n" not in str(said.value)
        flip(path, bit)
    assert folder.finished() is not None


def test_a_run_with_a_damaged_checkpoint_is_refused_and_begins_anew_without_it(tmp_path: Path) -> None:
    unhurt = whole("kd", tmp_path / "whole")
    place = tmp_path / "killed"
    renamed = [at for at, event in enumerate(unhurt.events) if event.startswith("os.rename .checkpoint.pt")]
    assert carry_out(command("kd", place), killing(place, renamed[1] + 1)).code == -9
    checkpoint = place / "run" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    flip(checkpoint, len(before) * 4)
    ended = carry_out(command("kd", place, "--resume"))
    assert ended.is_refusal(2), ended
    assert "remove it, and the run begins anew" in ended.said
    checkpoint.unlink()
    assert carry_out(command("kd", place, "--resume")).code == 0
    assert digest_of(place) == unhurt.digest
