"""Phases that don't depend on one another are trained side by side, with the bits of one process alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from netgraft.errors import RunError
from netgraft.plan import Feature, Phase, TrainingSchedule
from netgraft.training.parallel import Processes, independent_groups, phases_of_process, told_of_deaths
from netgraft.training.runner import Runner
from tests.support.processes import HANGS, call
from tests.support.tiny_plan import IndependentPhases, make_views, rows

FIT = TrainingSchedule(1, 1, 1e-3)


def phase(model: nn.Sequential, trainable: nn.Module, teacher: nn.Sequential | None = None) -> Phase:
    return Phase("any", model, trainable, lambda batch: {}, FIT, teacher)


def convolutions(count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(count)))


def test_grafts_of_single_blocks_are_independent_and_their_joining_is_not() -> None:
    teacher, student = convolutions(4), convolutions(4)
    grafts = [phase(nn.Sequential(*teacher[:n], student[n], *teacher[n + 1 :]), student[n], teacher) for n in range(4)]
    joins = [phase(nn.Sequential(*teacher[:n], *student[n:]), nn.Sequential(*student[n:]), teacher) for n in (2, 1, 0)]
    groups = list(independent_groups([*grafts, *joins]))
    assert groups == [range(0, 4), range(4, 5), range(5, 6), range(6, 7)]


@pytest.mark.parametrize(
    "how", ["prefix", "suffix", "teacher", "connector", "teacher's connector", "tied weight", "trained before"]
)
def test_what_another_phase_trains_is_waited_for(how: str) -> None:
    teacher, student = convolutions(3), convolutions(3)
    first = phase(nn.Sequential(student[0], *teacher[1:]), student[0], teacher)
    second = phase(nn.Sequential(teacher[0], student[1], teacher[2]), student[1], teacher)
    if how == "prefix":
        third = phase(nn.Sequential(student[0], student[2]), student[2], teacher)
    elif how == "suffix":
        third = phase(nn.Sequential(student[2], student[0]), student[2], teacher)
    elif how == "teacher":
        third = phase(nn.Sequential(student[2]), student[2], nn.Sequential(student[0], teacher[1]))
    elif how.endswith("connector"):
        features = (Feature(0), Feature(0, nn.Sequential(student[0])))
        named = {"teacher_features" if how.startswith("teacher") else "features": features}
        third = replace(phase(nn.Sequential(teacher[0], student[2]), student[2], teacher), **named)  # type: ignore[arg-type]
    elif how == "tied weight":
        tied = nn.Conv2d(3, 3, 1)
        tied.weight = student[0].weight  # type: ignore[assignment]
        third = phase(nn.Sequential(tied, student[2]), student[2])
    else:
        # the third trains what the first has in front of its own
        first = phase(nn.Sequential(student[2], student[0]), student[0])
        third = phase(nn.Sequential(student[2]), student[2])
    assert list(independent_groups([first, second, third])) == [range(0, 2), range(2, 3)]
    # the order doesn't matter
    assert list(independent_groups([third, second, first])) == [range(0, 2), range(2, 3)]


def test_no_phases_are_no_groups_and_one_is_one() -> None:
    [only] = student = convolutions(1)
    assert list(independent_groups([])) == []
    assert list(independent_groups([phase(student, only)])) == [range(0, 1)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("group", [range(0, 1), range(2, 9), range(4, 8)])
def test_processes_divide_a_group_among_them(group: range, ranks: int) -> None:
    divided = [list(phases_of_process(group, rank, ranks)) for rank in range(ranks)]
    assert sorted(number for numbers in divided for number in numbers) == list(group)
    assert max(map(len, divided)) - min(map(len, divided)) <= 1
    for place, number in enumerate(group):
        assert number in divided[place % ranks]


# --- two processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    """The student that one process trains, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    case = IndependentPhases()
    Runner(accelerator="cpu", precision="32").run(case.plan, make_views(), folder=folder)
    untrained = IndependentPhases().student.state_dict()
    trained = case.student.state_dict()
    for number in range(3):
        assert not torch.allclose(trained[f"{number}.0.0.weight"], untrained[f"{number}.0.0.weight"], atol=1e-3)
    return trained, folder


def lines(path: Path) -> dict[int, list[str]]:
    """Lines of metrics of each phase."""
    found: dict[int, list[str]] = {}
    for line in path.read_text().splitlines():
        found.setdefault(json.loads(line)["phase"], []).append(line)
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of several runs on two processes."""
    folder = tmp_path_factory.mktemp("together")
    process = call("independent_runs", str(folder), script=folder / "run.py")
    _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 0, error
    return folder


# killed: both processes in the middle of their phases; without: the other one had nothing saved
@pytest.mark.parametrize("how", ["whole", "killed", "without"])
def test_two_processes_train_the_very_student_of_one(
    together: Path, alone: tuple[dict[str, torch.Tensor], Path], how: str
) -> None:
    folder = together / how
    expected, reference = alone
    for rank in range(2):
        got = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        assert list(got) == list(expected)
        for name, value in expected.items():
            assert torch.equal(got[name], value), name
    every = lines(reference / "metrics.jsonl")
    assert list(every) == [0, 1, 2]
    assert lines(folder / "metrics.jsonl") == {number: every[number] for number in (0, 2)}
    assert lines(folder / "metrics-1.jsonl") == {1: every[1]}
    assert rows(folder) == [(0, 10), (0, 12), (2, 10), (2, 11)]
    assert rows(folder, "metrics-1.jsonl") == [(1, 10), (1, 20), (1, 23)]


# --- one of them dies


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of runs that share batches: whole, and gone on with after one process was killed."""
    folder = tmp_path_factory.mktemp("killed")
    process = call("killed_pairs", str(folder), script=folder / "run.py")
    _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 0, error
    return folder


@pytest.mark.parametrize("who", ["first", "second"])
def test_a_pair_of_which_one_was_killed_goes_on_to_the_same_bits(killed: Path, who: str) -> None:
    for rank in range(2):
        expected = torch.load(killed / "whole" / f"rank{rank}.pt", weights_only=True)
        got = torch.load(killed / who / f"rank{rank}.pt", weights_only=True)
        assert list(got) == list(expected)
        for name, value in expected.items():
            assert torch.equal(got[name], value), name


class Second:
    """Of two processes, all that is asked of Fabric before anything is exchanged."""

    global_rank, world_size = 1, 2


def test_a_process_whose_starter_is_dead_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(Second())  # type: ignore[arg-type]
    starter, stopped = os.getppid(), list[int]()

    def train(number: int) -> None:
        assert processes.everywhere(True)
        monkeypatch.setattr(os, "getppid", lambda: starter + 1)
        with pytest.raises(RunError, match="another process of this run has died"):
            processes.everywhere(True)
        stopped.append(number)
        raise RunError("as it was said")

    with pytest.raises(RunError, match="has died"):
        processes.each_alone(range(2), train, nn.ModuleList())
    assert stopped == [1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("Connection reset by peer"), True),
        (torch.distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_only_broken_connections_are_deaths(error: RuntimeError, told: bool) -> None:
    with pytest.raises(RunError if told else type(error)) as raised, told_of_deaths():
        raise error
    assert (raised.value is error) is not told
