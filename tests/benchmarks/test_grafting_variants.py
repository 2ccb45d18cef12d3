"""The ideas do what they say, against NumPy in float64 and against what a run was seen to do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.studies.grafting_variants import (
    RIDGE,
    Averaging,
    MatchingFeatures,
    Recalibration,
    WithoutGrafts,
    solve_adapters,
)
from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.grafting.adapters import Adapter
from netgraft.methods.registry import NetGraft
from netgraft.models.creation import build_student
from netgraft.models.loading import load_teacher
from netgraft.training.runner import Runner

STEPS = 8


def prepared(kind: Callable[..., NetGraft] = NetGraft, init: str = "random") -> Distillation:
    teacher = load_teacher("digits_vgg7_bn")
    return prepare(
        teacher,
        build_student("digits_vgg7_bn_half", teacher=teacher, seed=0),
        open_data("digits").train.load_many(range(20)),
        method=kind(block_steps=(STEPS,), join_steps=STEPS, batch_size=8, sliced_rate=1.0),
        views=ViewPolicy("few", pad=1, pool=200),
        init=init,
        runner=Runner(accelerator="cpu", precision="32"),
    )


def rows(maps: Tensor) -> NDArray[np.float64]:
    """Images and places as rows, channels as columns."""
    return maps.detach().double().movedim(1, -1).reshape(-1, maps.shape[1]).numpy()


@torch.no_grad()
def around(run: Distillation, number: int) -> tuple[Tensor, Tensor]:
    """What the teacher's block ``number`` takes in and gives."""
    state = run.views.batch(range(len(run.views)))
    for block in run.pairing.teacher.blocks()[:number]:
        state = block(state.clone())
    return state, run.pairing.teacher[number](state.clone())


@pytest.mark.parametrize(("joins", "steps"), [("front-to-back", [20, 20]), ("at-once", [40])])
def test_without_grafts_the_joins_have_their_steps(joins: str, steps: list[int]) -> None:
    # three grafts of 8 and two joins of 8
    run = prepared(partial(WithoutGrafts, joins=joins))
    assert [phase.schedule.steps for phase in run.plan.phases] == steps
    assert all(phase.name.startswith("join") for phase in run.plan.phases)
    assert {phase.schedule.lr for phase in run.plan.phases} == {phase.schedule.lr for phase in prepared().plan.phases}


def test_adapters_are_principal_directions_and_least_squares() -> None:
    run = prepared()
    solve_adapters(run)
    scion = run.plan.phases[1].trainable
    enter, block, leave = scion.children()
    assert isinstance(enter, Adapter)
    assert isinstance(leave, Adapter)
    arriving, leaving = around(run, run.pairing.inherited + 1)
    # the energy that is kept is that of the largest singular values
    values = np.linalg.svd(rows(arriving), compute_uv=False)
    kept = np.square(rows(enter(arriving))).sum()
    assert kept == pytest.approx(np.square(values[: enter.out_channels]).sum(), rel=1e-4)
    # ridge regression as ordinary least squares with a row more for each weight
    with torch.no_grad():
        given = rows(copy.deepcopy(block).train()(enter(arriving)))
    penalty = np.sqrt(RIDGE * np.square(given).sum(0).mean())
    inputs = np.vstack([given, penalty * np.eye(given.shape[1])])
    outputs = np.vstack([rows(leaving), np.zeros((given.shape[1], leaving.shape[1]))])
    expected = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
    found = leave.weight.detach()[:, :, 0, 0].numpy().T
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_solving_leaves_blocks_and_teacher_as_they_are() -> None:
    solved, plain = prepared(), prepared()
    solve_adapters(solved)
    for part in ("teacher", "student"):
        expected = getattr(plain.pairing, part).state_dict()
        for name, value in getattr(solved.pairing, part).state_dict().items():
            assert torch.equal(value, expected[name]), name


class Diary(Averaging):
    """Also notes every state of the phase's weights by itself."""

    def __init__(self, run: Distillation) -> None:
        super().__init__(run)
        self.states: list[dict[str, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        super().phase_started(number, count, name, steps, done)
        self.states = []

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        super().progressed(done, terms)
        self.states.append({k: v.clone().double() for k, v in self._phase.trainable.state_dict().items()})

    def phase_finished(self, seconds: float) -> None:
        super().phase_finished(seconds)
        last = self.states[-(STEPS // 4) :]
        ends = self._phase.trainable.state_dict()
        for name, value in ends.items():
            if value.is_floating_point():
                mean = torch.stack([state[name] for state in last]).mean(0)
                torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-7)
        self.ends.append(ends)


def test_each_phase_ends_with_the_mean_of_its_last_quarter() -> None:
    run = prepared()
    diary = Diary(run)
    run.run(reporter=diary)
    assert len(diary.ends) == len(run.plan.phases) == 5


def test_statistics_are_those_of_the_images_as_they_are() -> None:
    run = prepared()
    images = run.views.batch(range(20))
    seen: dict[nn.Module, Tensor] = {}
    last = run.plan.phases[-1]
    norms = [layer for layer in last.trainable.modules() if isinstance(layer, nn.BatchNorm2d)]

    class Look(Recalibration):
        def phase_finished(self, seconds: float) -> None:
            for norm in norms:
                norm.register_forward_pre_hook(lambda norm, inputs: seen.update({norm: inputs[0]}))
            super().phase_finished(seconds)
            if self._phase is last:
                for norm in norms:
                    torch.testing.assert_close(norm.running_mean, seen[norm].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
                    variance = seen[norm].transpose(0, 1).flatten(1).var(1)
                    torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-5)
                    assert not norm.training
                    assert norm.momentum == 0.1

    run.run(reporter=Look(run, images))
    assert len(norms) == 4
    assert set(norms) <= set(seen)


def test_features_are_compared_behind_each_run_of_blocks_but_the_last() -> None:
    plan = prepared(MatchingFeatures).plan
    assert [phase.name for phase in plan.phases] == [
        "graft block 2", "graft block 3", "graft block 4", "join blocks 2-3", "join blocks 2-4"
    ]  # fmt: skip
    assert [[each.block for each in phase.features] for phase in plan.phases] == [[1], [2], [], [1], []]
    assert [[each.block for each in phase.teacher_features] for phase in plan.phases] == [[1], [2], [], [2], []]
    terms: dict[str, Any] = {}

    class Terms(Averaging):
        def progressed(self, done: int, values: Mapping[str, float]) -> None:
            terms.setdefault(self._phase.name, set()).update(values)

    run = prepared(MatchingFeatures)
    run.run(reporter=Terms(run))
    assert terms["graft block 2"] == terms["join blocks 2-3"] == {"logits", "features"}
    assert terms["join blocks 2-4"] == {"logits"}
