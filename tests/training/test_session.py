"""A run's state in its folder: what is saved, when, and how long it took."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from netgraft.errors import InterruptedRunError
from netgraft.training.checkpoint import Checkpoint
from netgraft.training.parallel import Processes
from netgraft.training.session import ResumePoint, Session


def session(folder: Path | None, *, save_every: float = 0.0, stop: bool = False) -> Session:
    torch.manual_seed(0)
    return Session(
        folder=folder,
        fingerprint="f",
        precision="32",
        save_every=save_every,
        stop=lambda: stop,
        trainables=nn.ModuleList([nn.Linear(2, 2)]),
        steps=[4],
        processes=Processes(Fabric(accelerator="cpu", devices=1)),
    )


def test_only_training_counts_as_time_and_a_resumed_run_goes_on_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first = session(tmp_path)
    now += 50
    assert first.seconds == 0
    with first.training():
        now += 3
        assert first.seconds == 3
        first.save(0, 1, {})
        now += 4
    now += 50
    assert first.seconds == 7
    again = session(tmp_path)
    assert again.restore(True, [range(1)]) == ResumePoint(0, 1, {})
    with again.training():
        now += 10
    assert again.seconds == 3 + 10


def test_a_checkpoint_is_due_some_time_after_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    running = session(tmp_path, save_every=5)
    now = 5.0
    assert not running.due
    now = 5.5
    assert running.due
    running.save(0, 1, {})
    assert not running.due


def test_a_stopped_session_saves_itself_and_says_where(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.5)
    session(tmp_path).heed_stop(1, 2, optimizer)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InterruptedRunError, match=r"before step 3 of phase 2; saved in .*, go on with --resume"):
        session(tmp_path, stop=True).heed_stop(1, 2, optimizer)
    saved = Checkpoint.load(tmp_path / "checkpoint.pt", "f")
    assert (saved.phase, saved.step, saved.optimizer["param_groups"][0]["lr"]) == (1, 2, 0.5)


def test_without_a_folder_nothing_is_kept() -> None:
    running = session(None, stop=True)
    running.save(0, 1, {})
    running.log({"phase": 0, "step": 1})
    assert running.what_stays() == "nothing was saved"
    assert running.restore(True, [range(1)]) == ResumePoint()
    with pytest.raises(InterruptedRunError, match=r"^stopped before step 3 of phase 2$"):
        running.heed_stop(1, 2, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.5))
