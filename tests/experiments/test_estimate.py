"""Estimates of the time: what counts, and that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netgraft.evaluation.environment import processor
from netgraft.experiments import estimate as module
from netgraft.experiments.estimate import START, Estimate, seconds_per_image
from netgraft.experiments.specification import Experiment
from netgraft.jobs.prepared_derivation import PreparedDerivation


def parse(text: str, tmp_path: Path) -> Experiment:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return Experiment.load(path)


def test_the_estimate_counts_the_views_that_a_run_asks_for(tmp_path: Path) -> None:
    experiment = parse(
        """
        [common]
        data = "digits"
        method = "kd"
        [[run]]
        name = "{views}"
        views = ["rich", "plain"]
        settings = { steps = 300 }
        """,
        tmp_path,
    )
    estimate = Estimate([])
    rich, plain = (estimate.seconds(cell) for cell in experiment.cells)
    # the teacher answers 16,384 views, or 100 images
    assert plain < rich


def test_the_estimate_leaves_out_what_is_frozen_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds_per_image", lambda *args: 0.001)
    [cell] = parse('[[run]]\ndata = "digits"\nmethod = "kd"\nsettings = { steps = 100 }', tmp_path).cells
    # 3x3 convolutions behind the first two on maps of 4x4 and 2x2, then ten classes; of the teacher's 2,379,008
    trained = 9 * (2 * 32 * 32 * 16 + 32 * 64 * 4 + 64 * 64 * 4) + 64 * 10
    steps, answers, test = 3 * 6400 * trained / 2_379_008, 6400, 600
    assert Estimate([]).seconds(cell) == pytest.approx(START + (steps + answers + test) / 1000)


@pytest.mark.parametrize(
    "more",
    [
        "",
        'convolutions = "whole"',
        'criterion = "weight-norm"',
        'init = "slice"',
        'allocation = "uniform"\ncriterion = "weight-norm"',
    ],
)
def test_the_estimate_counts_what_is_tried_to_derive_a_student(
    more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run of its own does, which follows the teacher's channels before it says how long it takes."""
    monkeypatch.setattr(module, "seconds_per_image", lambda *args: 0.001)
    [cell] = parse(f'[[run]]\ndata = "digits"\nkeep = "macs=0.5"\n{more}', tmp_path).cells
    prepared = cell.job().prepare()
    assert isinstance(prepared, PreparedDerivation)
    estimate = Estimate([])
    derived = estimate.seconds(cell) - estimate.reckoned(cell.job())
    assert derived == pytest.approx(prepared.forwards() / 1000)
    tried = "uniform" not in more
    # 2,048 views twice; beside them 256 from each place on, at five widths
    assert derived > 5 if tried else derived == pytest.approx(2 * 2.048)


def test_a_named_student_is_not_derived(tmp_path: Path) -> None:
    [cell] = parse('[[run]]\ndata = "digits"', tmp_path).cells
    assert Estimate([]).deriving(cell.job()) == 0


def counting(calls: list[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return function(*args, **kwargs)

    return counted


def test_what_cells_have_in_common_is_opened_paired_and_timed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = parse(
        """
        [common]
        data = "digits"
        shots = [1, 10]
        precision = "32"
        [[run]]
        name = "{method}, {init}, {inherit}"
        method = ["kd", "none"]
        init = ["auto", "random"]
        inherit = ["auto", "none"]
        settings = {}
        """,
        tmp_path,
    )
    calls: dict[str, list[Any]] = {}
    for name in ("open_data", "cut_and_pair", "seconds_per_image"):
        monkeypatch.setattr(module, name, counting(calls.setdefault(name, []), getattr(module, name)))
    estimate = Estimate([])
    assert len(experiment.cells) == 16
    assert all(estimate.seconds(cell) > START for cell in experiment.cells)
    # teacher and student; with what is inherited and without
    assert {name: len(each) for name, each in calls.items()} == {
        "open_data": 1,
        "seconds_per_image": 2,
        "cut_and_pair": 2,
    }


@pytest.mark.parametrize(
    ("machine", "timed"), [("Old CPU", ["32", "32"]), ("New CPU, avx512_bf16", ["32", "bf16", "32"])]
)
def test_bfloat16_is_timed_where_it_can_be_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, timed: list[str]
) -> None:
    asked: list[str] = []

    def seconds(model: nn.Module, size: tuple[int, int, int], precision: str) -> float:
        asked.append(precision)
        return 0.001

    monkeypatch.setattr(module, "processor", lambda: machine)
    monkeypatch.setattr(module, "seconds_per_image", seconds)
    [cell] = parse('[[run]]\ndata = "digits"\nmethod = "kd"\nsettings = { steps = 100 }', tmp_path).cells
    Estimate([]).seconds(cell)
    assert asked == timed


def test_finished_cells_of_this_machine_say_how_long_their_row_takes(tmp_path: Path) -> None:
    text = '[[run]]\ndata = "digits"\nmethod = ["kd", "none"]\nsubsets = [0, 1, 2]'
    cells = {(cell.row, cell.options["subset_seed"]): cell for cell in parse(text, tmp_path).cells}
    here, elsewhere = {"machine": processor(), "seconds": 7.0}, {"machine": "another", "seconds": 900.0}
    estimate = Estimate([(cells["kd", 0], here), (cells["kd", 1], elsewhere), (cells["none", 0], elsewhere)])
    assert estimate.is_measured(cells["kd", 2])
    assert estimate.seconds(cells["kd", 2]) == 7.0
    assert not estimate.is_measured(cells["none", 2])


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_model_is_timed_in_eval_mode_and_stays_as_it_is(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMING", 0.0)
    modes, dtypes = set(), []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            modes.add(self.training)
            output = self.layer(images)
            dtypes.append(output.dtype)
            return output

    model = Model()
    threads = torch.get_num_threads()
    assert seconds_per_image(model, (1, 8, 8), precision) > 0
    assert torch.get_num_threads() == threads
    # the first forward counts products
    assert (modes, set(dtypes[1:])) == ({False}, {torch.float32 if precision == "32" else torch.bfloat16})
    assert model.training
