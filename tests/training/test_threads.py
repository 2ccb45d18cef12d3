"""The number of threads is that which is fastest just now, by the median of forwards that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from netgraft.data.threads import computing_with
from netgraft.training.threads import SAID, fastest_number, number_is_said


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """A number of threads that nothing but these tests knows of: eight at first."""
    now = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: now.__setitem__(0, number))
    yield lambda: now[0]
    assert now == [8], "the number comes back"


class Timed(nn.Module):
    """Works in place on what it is given, and takes so many seconds on each number of threads."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        super().__init__()
        self.seconds = seconds
        self.calls: list[int] = []
        self.now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        threads = torch.get_num_threads()
        # the first call warms up, and now and then something is in the way
        delay = 0.1 if threads not in self.calls else 0.02 * (len(self.calls) % 7 == 0)
        self.calls.append(threads)
        self.now += self.seconds[threads] + delay
        return x.zero_()


@pytest.mark.parametrize(
    ("seconds", "number", "why"),
    [
        ({8: 0.001, 4: 0.002, 1: 0.008}, 8, "no fewer run the teacher faster here"),
        ({8: 0.001, 4: 0.00095, 1: 0.001}, 8, "no fewer run the teacher faster here"),
        (
            {8: 0.06, 4: 0.004, 1: 0.006},
            4,
            "they run the teacher 15.0 times as fast as 8 beside what else runs here",
        ),
        ({8: 0.05, 4: 0.02, 1: 0.01}, 1, "it runs the teacher 5.0 times as fast as 8 beside what else runs here"),
    ],
)
def test_the_fastest_number_is_taken_if_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, seconds: Mapping[int, float], number: int, why: str
) -> None:
    model = Timed(seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    images = torch.randn(4, 3, 6, 6)
    before = images.clone()
    assert fastest_number(model, images) == (number, why)
    assert torch.equal(images, before)
    assert model.calls[:6] == [8, 4, 1, 8, 4, 1]
    assert model.now <= 1


def test_a_single_forward_that_takes_long_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Timed({8: 5.0, 4: 6.0, 1: 9.0})
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    assert fastest_number(model, torch.zeros(1, 1, 2, 2))[0] == 8
    assert model.calls == [8, 4, 1]


def test_the_former_number_comes_back_after_an_error(counted: Callable[[], int]) -> None:
    with pytest.raises(ZeroDivisionError), computing_with(3):
        1 // (counted() - 3)
    assert counted() == 8


@pytest.mark.parametrize("name", [None, *SAID])
def test_whether_the_environment_says_a_number(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    for each in SAID:
        monkeypatch.delenv(each, raising=False)
    if name is not None:
        monkeypatch.setenv(name, "2")
    assert number_is_said() is (name is not None)
