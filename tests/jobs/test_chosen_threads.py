"""A run goes on with the threads that it began with; what the environment says is obeyed, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netgraft.data.threads import computing_with
from netgraft.jobs import chosen_threads
from netgraft.jobs.chosen_threads import ChosenThreads
from netgraft.jobs.distill import DistillJob
from netgraft.jobs.run_folder import RunFolder
from netgraft.training.options import DeviceOptions
from netgraft.training.threads import SAID
from tests.support.tiny_plan import Notebook


@pytest.fixture(autouse=True)
def _said_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in SAID:
        monkeypatch.delenv(name, raising=False)
    # a number that nothing but these tests knows of: one thread computes
    now = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: now.__setitem__(0, number))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Sizes of the images of each measurement, all of which are in favour of one thread."""
    sizes: list[torch.Size] = []

    def measure(model: nn.Module, images: torch.Tensor) -> tuple[int, str]:
        assert not model.training
        sizes.append(images.shape)
        return 1, "as it is here"

    monkeypatch.setattr(chosen_threads, "fastest_number", measure)
    return sizes


@pytest.mark.parametrize("said", ["OMP_NUM_THREADS", "one core", "on resume"])
def test_nothing_is_measured_where_the_number_is_known(
    measured: list[torch.Size], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    every = 1 if said == "one core" else 3
    if said == "OMP_NUM_THREADS":
        monkeypatch.setenv(said, "3")
    with computing_with(every):
        chosen = ChosenThreads.of_begun({}) if said == "on resume" else ChosenThreads.at_start(nn.Linear(1, 1))
    assert chosen == ChosenThreads(every)
    assert measured == []


@pytest.mark.parametrize(
    ("began", "every", "said", "number", "note"),
    [
        (2, 2, False, 2, None),
        (2, 2, True, 2, None),
        (1, 2, False, 1, "threads 1: the run began with as many"),
        (4, 2, False, 4, "threads 4: the run began with as many"),
        (
            1,
            2,
            True,
            2,
            "threads 2, as the environment says: the run began with 1, so the last bits",
        ),
        (None, 2, False, 2, None),
        (0, 2, False, 2, None),
        (10**9, 2, False, 2, None),
        ("2", 3, False, 3, None),
        (True, 3, False, 3, None),
    ],
)
def test_a_run_goes_on_with_the_threads_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, began: Any, every: int, said: bool, number: int, note: str | None
) -> None:
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", str(every))
    with computing_with(every):
        chosen = ChosenThreads.of_begun({} if began is None else {"threads": began})
    assert chosen.number == number
    assert (chosen.note or "").startswith(note or "")
    assert (chosen.note is None) == (note is None)


def test_a_whole_run_says_its_threads_and_goes_on_with_them(measured: list[torch.Size]) -> None:
    job = DistillJob(
        shots=1,
        method="none",
        views="plain",
        compute=DeviceOptions(accelerator="cpu", precision="32"),
        out=Path("run"),
        resume=True,
    )
    notes = Notebook()
    with computing_with(2):
        result = job.run(notes)
        assert torch.get_num_threads() == 2
    assert measured == [(32, 1, 8, 8)]
    assert [note for note in notes.notes if note.startswith("threads")] == ["threads 1: as it is here"]
    assert result["threads"] == 1
    assert json.loads(Path("run/config.json").read_text())["threads"] == 1

    # unfinished, and then on a machine where nothing is measured
    Path("run/result.json").unlink()
    again = Notebook()
    with computing_with(2):
        assert job.run(again)["threads"] == 1
    assert [note for note in again.notes if note.startswith("threads")] == ["threads 1: the run began with as many"]
    assert len(measured) == 1
    assert RunFolder(Path("run")).finished() is not None
