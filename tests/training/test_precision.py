"""The precision is what was asked for, or what is faster here, and a run keeps the one that it began with."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from netgraft.errors import InterruptedRunError, RequestError
from netgraft.modules import state_digest
from netgraft.training import runner as runner_module
from netgraft.training.precision import autocast, compute_dtype, fastest, timed_images
from netgraft.training.runner import Runner
from tests.support.tiny_plan import Case, Notebook, Squared, make_views

CPU = torch.device("cpu")


def test_types_of_activations() -> None:
    assert compute_dtype("32") is torch.float32
    assert compute_dtype("bf16") is torch.bfloat16


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_convolutions_and_products_run_in_the_precision(precision: str) -> None:
    images = torch.randn(2, 3, 6, 6)
    with autocast(precision, CPU):
        assert nn.Conv2d(3, 4, 3)(images).dtype == compute_dtype(precision)
        assert nn.Linear(6, 4)(images).dtype == compute_dtype(precision)
    assert nn.Conv2d(3, 4, 3)(images).dtype == torch.float32


class Slow(nn.Module):
    """Works in place on what it is given, and takes its time, which differs between precisions and between calls."""

    def __init__(self, in_bf16: float, in_32: float) -> None:
        super().__init__()
        self.seconds = {True: in_bf16, False: in_32}
        self.calls = {True: 0, False: 0}
        self.now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        lowered = torch.is_autocast_enabled("cpu")
        # the first call warms up, and other work on the machine delays others
        delay = {0: 100.0, 2: 50.0}.get(self.calls[lowered], 0.0) * (1 + lowered)
        self.calls[lowered] += 1
        self.now += self.seconds[lowered] + delay
        return x.zero_()


@pytest.mark.parametrize(
    ("in_bf16", "in_32", "expected", "said"),
    [
        (3.0, 1.5, "32", "2.0 times slower than"),
        (15.0, 1.5, "32", "more than 3 times slower than"),
        (1.0, 3.0, "bf16", "3.0 times faster than"),
        (1.0, 1.0, "32", "as fast as"),
        (1.0, 1.14, "32", "only 1.1 times faster than"),
        (4, 5, "bf16", "1.2 times faster than"),
    ],
)
def test_the_faster_precision_is_chosen_if_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, in_bf16: float, in_32: float, expected: str, said: str
) -> None:
    model = Slow(in_bf16, in_32)
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    images = torch.randn(4, 3, 6, 6)
    before = images.clone()
    assert fastest(model, images) == (
        expected,
        f"bfloat16 runs the teacher {said} float32 here",
    )
    assert torch.equal(images, before)
    assert model.calls[True] == model.calls[False] > 1


class SlowLayers(nn.Module):
    """Many layers, each of which takes its time for an image, and in bfloat16 several times as long."""

    def __init__(self, seconds: float, slower: float, layers: int = 50) -> None:
        super().__init__()
        self.seconds = {False: seconds / layers, True: slower * seconds / layers}
        self.layers = layers
        self.calls = 0
        self.now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for _ in range(self.layers):
            self.now += self.seconds[torch.is_autocast_enabled("cpu")] * len(x)
            x = x + 1
        return x


# seconds of an image in float32, from a tiny network to the largest that is timed within the second that there is
@pytest.mark.parametrize("seconds", [1e-4, 1e-3, 5e-3, 0.02, 0.05, 0.15])
@pytest.mark.parametrize(("slower", "within"), [(3.5, 2.1), (8.0, 1.3), (40.0, 1.1)])
def test_a_much_slower_bfloat16_is_noticed_after_about_a_second(
    monkeypatch: pytest.MonkeyPatch, seconds: float, slower: float, within: float
) -> None:
    model = SlowLayers(seconds, slower)
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    chosen, why = fastest(model, torch.zeros(max(4, min(32, int(0.15 / seconds))), 1, 2, 2))
    assert chosen == "32"
    assert "slower than float32" in why
    assert 0 < model.now <= within
    # of a forward that isn't waited for nothing is left behind
    with autocast("bf16", CPU):
        assert torch.equal(model(torch.zeros(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 50.0))


def test_of_a_large_model_few_forwards_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SlowLayers(1.0, 0.5)
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    assert fastest(model, torch.zeros(4, 1, 2, 2))[0] == "bf16"
    assert model.now == pytest.approx(4.5)
    assert model.calls == 6


def test_where_it_is_unknown_float32_is_taken() -> None:
    model = Slow(0.0, 0.0)
    chosen, why = fastest(model, torch.empty(1, 3, 6, 6, device="meta"))
    assert (chosen, why) == ("32", "bfloat16 is not tried on meta")
    assert model.calls == {True: 0, False: 0}


@pytest.mark.parametrize(("side", "expected"), [(8, 32), (32, 32), (64, 8), (224, 4), (1000, 4)])
def test_larger_images_are_timed_fewer_at_a_time(side: int, expected: int) -> None:
    assert timed_images((3, side, side)) == expected


# --- in a run


@pytest.mark.parametrize("precision", ["fp16", "bf16-mixed", "", "64"])
def test_unknown_precisions_are_refused(precision: str) -> None:
    case = Case()
    digest = state_digest(case.student)
    said = f"must be one of auto, 32, bf16, not '{precision}'" if precision else "can't be empty"
    with pytest.raises(RequestError, match=f"precision {said}"):
        case.run(runner=Runner(accelerator="cpu", precision=precision))
    assert state_digest(case.student) == digest


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_runs_compute_in_the_precision_and_losses_in_float32(precision: str) -> None:
    seen: list[torch.dtype] = []
    enabled: list[bool] = []

    case = Case(objective=Squared(watch=lambda batch: enabled.append(torch.is_autocast_enabled("cpu"))))
    case.block[0].register_forward_hook(
        lambda module, given, output: seen.append(output.dtype) if module.training else None
    )
    trained = case.run(runner=Runner(accelerator="cpu", precision=precision))
    assert trained.precision == precision
    assert set(seen) == {compute_dtype(precision)}
    assert enabled == [False] * 8
    assert all(p.dtype == torch.float32 for p in case.student.parameters())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Measurements that are made; the first of them is in favour of bfloat16, the others aren't."""
    made: list[tuple[str, str]] = []

    def measure(model: nn.Module, images: Tensor) -> tuple[str, str]:
        made.append(("bf16" if not made else "32", "so it is here"))
        return made[-1]

    monkeypatch.setattr(runner_module, "fastest", measure)
    return made


AUTO = Runner(accelerator="cpu", precision="auto", checkpoint_seconds=0)


def test_a_run_says_what_it_chose_and_why(measured: list[tuple[str, str]]) -> None:
    notebook, case, same = Notebook(), Case(), Case()
    assert case.run(runner=AUTO, reporter=notebook).precision == "bf16"
    assert "precision bf16: so it is here" in notebook.notes
    same.run(runner=Runner(accelerator="cpu", precision="bf16"))
    assert state_digest(case.student) == state_digest(same.student)
    assert len(measured) == 1


def test_what_was_asked_for_is_not_measured(measured: list[tuple[str, str]]) -> None:
    notebook = Notebook()
    Case().run(runner=Runner(accelerator="cpu", precision="32"), reporter=notebook)
    assert measured == []
    assert not any("precision" in note for note in notebook.notes)


def test_a_resumed_run_keeps_its_precision(tmp_path: Path, measured: list[tuple[str, str]]) -> None:
    whole = Case(dropout=0.5)
    whole.run(runner=AUTO)
    measured.clear()
    case = Case(dropout=0.5)
    asked = iter(range(100))
    with pytest.raises(InterruptedRunError):
        case.run(runner=AUTO, folder=tmp_path, stop=lambda: next(asked) == 5)
    assert len(measured) == 1

    before = (tmp_path / "checkpoint.pt").read_bytes()
    refused = Case(dropout=0.5)
    digest = state_digest(refused.student)
    with pytest.raises(RequestError, match="was computed with precision bf16, not 32; ask for the same"):
        refused.run(runner=Runner(accelerator="cpu", precision="32"), folder=tmp_path, resume=True)
    assert state_digest(refused.student) == digest
    assert (tmp_path / "checkpoint.pt").read_bytes() == before

    again = Case(dropout=0.5)
    assert again.run(runner=AUTO, folder=tmp_path, resume=True).precision == "bf16"
    assert len(measured) == 1
    assert state_digest(again.student) == state_digest(whole.student)


def test_the_same_precision_may_be_asked_for_by_name(tmp_path: Path, measured: list[tuple[str, str]]) -> None:
    asked = iter(range(100))
    with pytest.raises(InterruptedRunError):
        Case().run(runner=AUTO, folder=tmp_path, stop=lambda: next(asked) == 2)
    named = Runner(accelerator="cpu", precision="bf16")
    assert Case().run(runner=named, views=make_views(), folder=tmp_path, resume=True).precision == "bf16"
    assert len(measured) == 1
