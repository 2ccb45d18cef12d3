"""Methods that compare features, each against its article: hints, factors, boundaries, flows, sparsity, relations."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.data.view_policy import ViewPolicy
from netgraft.errors import RequestError
from netgraft.grafting.adapters import Projector
from netgraft.grafting.pairing import Pairing
from netgraft.methods.baseline import Baseline
from netgraft.methods.connectors import BoundaryConnector, Paraphraser
from netgraft.methods.method import Budget
from netgraft.methods.registry import AB, choose
from netgraft.modules import state_digest
from netgraft.plan import StepOutputs
from tests.support.method_pairs import (
    Losses,
    method,
    networks,
    pairing,
    random,
    ready,
    values,
    watched,
)

B, K = 3, 10

PLAIN = ViewPolicy("plain", pool=0)


def hints(student: np.ndarray, teacher: np.ndarray) -> float:
    """``1/2 ||F_T - F_S||^2``, averaged over the batch."""
    return float(np.mean([0.5 * np.sum((t - s) ** 2) for s, t in zip(student, teacher, strict=True)]))


# --- FitNets


def test_the_hint_phase_runs_no_block_behind_the_hint() -> None:
    # of four blocks the first is inherited; the middle of the two between it and the head is the second
    prepared = ready("digits", method("fitnets", hint_steps=3, steps=0, batch_size=4))
    runs: Counter[tuple[str, int]] = Counter()
    chains = {"teacher": prepared.pairing.teacher.blocks(), "student": prepared.pairing.student.blocks()}
    for who, blocks in chains.items():
        for number, block in enumerate(blocks):
            block.register_forward_hook(lambda *_, key=(who, number): runs.update([key]))
    losses = Losses()
    prepared.runner.run(prepared.plan, prepared.views, reporter=losses)
    assert [len(phase) for phase in losses.phases] == [3]
    assert runs[("student", 1)] >= 3
    assert runs[("teacher", 1)] >= 1
    assert {number for _, number in runs} == {0, 1}


def test_the_hint_phase_trains_the_front_and_the_regressor() -> None:
    start = pairing()
    [hint] = method("fitnets").objective(start).before
    [feature] = hint.features
    assert feature.block == 1
    # behind the second block the teacher is 64 wide and the student 32: a 1x1 convolution with a bias
    assert feature.connector is not None
    assert [tuple(p.shape) for p in feature.connector.parameters()] == [(64, 32, 1, 1), (64,)]
    expected = {*start.student.blocks()[1].parameters(), *feature.connector.parameters()}
    assert {*hint.trainable.parameters()} == expected


def test_the_hints_target_are_the_teachers_features() -> None:
    seen: list[StepOutputs] = []
    prepared = ready("digits", method("fitnets", hint_steps=1, steps=0, batch_size=1), count=1, views=PLAIN)
    watched(prepared, lambda number, batch: seen.append(batch)).run()
    with torch.no_grad():
        expected = nn.Sequential(*prepared.pairing.teacher.eval().blocks()[:2])(prepared.views.batch([0]))
    assert expected.shape == (1, 64, 2, 2)
    assert seen[0].target is not None
    torch.testing.assert_close(seen[0].target, expected)


@pytest.mark.parametrize(("preset", "summed"), [("paper", True), ("default", False)])
def test_the_articles_hint_is_a_sum_and_the_default_a_mean(preset: str, summed: bool) -> None:
    chosen = choose("fitnets", preset, Budget(10, 10)).method
    assert isinstance(chosen, Baseline)
    student, teacher = random(B, 4, 2, 2), random(B, 4, 2, 2, seed=1)
    [hint] = chosen.objective(pairing()).before
    expected = hints(student.numpy(), teacher.numpy()) if summed else np.mean((student - teacher).numpy() ** 2)
    assert values(hint.objective(StepOutputs(student, teacher, None, (student,)))) == {"hint": pytest.approx(expected)}


def test_a_hint_beside_kd_keeps_its_weight_and_its_regressor() -> None:
    objective = method("fitnets", hint_weight=7.0).objective(pairing())
    assert [feature.connector for feature in objective.features] == [objective.before[0].features[0].connector]
    student, teacher, logits = random(B, 4, 2, 2), random(B, 4, 2, 2, seed=1), random(B, K)
    terms = values(objective.terms(StepOutputs(logits, logits, None, (student,), (teacher,))))
    assert terms["hint"] == pytest.approx(7 * np.mean((student - teacher).numpy() ** 2))
    assert method("fitnets").objective(pairing()).features == ()


# --- FT


class Between(Losses):
    """Takes the digests of some modules in front of and behind every phase."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.modules = modules
        self.digests: list[tuple[str, ...]] = []

    def phase_started(self, *arguments: Any) -> None:
        super().phase_started(*arguments)
        self._take()

    def phase_finished(self, seconds: float) -> None:
        self._take()

    def _take(self) -> None:
        self.digests.append(tuple(state_digest(module) for module in self.modules))


def test_the_paraphraser_learns_of_the_teacher_alone_and_is_frozen_then() -> None:
    seen: list[tuple[int, StepOutputs]] = []
    chosen = method("ft", paraphraser_steps=25, steps=2, batch_size=4, lr=3e-3)
    prepared = ready("digits", chosen, views=PLAIN)
    first, second = prepared.plan.phases
    paraphraser = first.trainable
    assert isinstance(paraphraser, Paraphraser)
    between = Between(prepared.pairing.student, paraphraser)
    watched(prepared, lambda number, batch: seen.append((number, batch))).run(reporter=between)
    (student, start), (student_after_first, trained), *second_digests = between.digests
    assert student == student_after_first
    assert start != trained
    assert [paraphraser_now for _, paraphraser_now in second_digests] == [trained, trained]
    assert second_digests[-1][0] != student
    assert {*paraphraser.parameters()}.isdisjoint(second.trainable.parameters())

    reconstruction = [terms["reconstruction"] for terms in between.phases[0]]
    assert reconstruction[-1] < 0.7 * reconstruction[0]
    # the last batch of factors, again: the trained encoder in eval mode on the teacher's last maps
    with torch.no_grad():
        maps = nn.Sequential(*prepared.pairing.teacher.eval().blocks()[:3])(prepared.views.batch(range(4)))
        factors = paraphraser.eval().encoder(maps)
    assert factors.shape == (4, 64, 1, 1)
    rows = seen[-1][1].teacher_features[0]
    assert (torch.cdist(rows.flatten(1), factors.flatten(1)).min(1).values < 1e-4).all()
    # and what is reconstructed are these maps
    target = seen[0][1].target
    assert target is not None
    assert (torch.cdist(target.flatten(1), maps.flatten(1)).min(1).values < 1e-4).all()


@pytest.mark.parametrize(("preset", "weight"), [("default", 500.0), ("paper", 1.0), ("repdistiller", 200.0)])
def test_factors_are_compared_by_direction(preset: str, weight: float) -> None:
    chosen = choose("ft", preset, Budget(10, 10)).method
    assert isinstance(chosen, Baseline)
    student, teacher, logits = random(B, 4, 2, 2), random(B, 4, 2, 2, seed=1), random(B, K)
    distances = []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        distances.append(np.abs(s / np.sqrt(np.sum(s**2)) - t / np.sqrt(np.sum(t**2))))
    expected = np.mean([d.sum() if preset == "paper" else d.mean() for d in distances])
    batch = StepOutputs(logits, logits, None, (student,), (teacher,))
    assert values(chosen.objective(pairing()).terms(batch))["factors"] == pytest.approx(weight * expected)


def test_there_is_no_factor_without_a_trained_paraphraser() -> None:
    with pytest.raises(RequestError, match="paraphraser_steps must be at least 1, not 0"):
        method("ft", paraphraser_steps=0)


# --- AB


def test_boundaries_by_hand() -> None:
    # margin 2; teacher on, off, on, off; distances to the right side 2 - 3 -> 0, 2 + 1 = 3, 2 - (-1) = 3, 2 - 3 -> 0
    theirs = torch.tensor([[1.0, 0.0, 5.0, 0.0]], dtype=torch.float64)
    mine = torch.tensor([[3.0, 1.0, -1.0, -3.0]], dtype=torch.float64)
    [phase] = method("ab", ab_margin=2.0).objective(pairing()).before
    two = StepOutputs(mine, theirs, None, (mine, 0 * mine[:, :2]), (theirs, theirs[:, :2]))
    # the mean over 4 neurons of 0, 9, 9, 0; a student at 0 is 2 short of either side
    assert list(values(phase.objective(two)).values()) == pytest.approx([18 / 4, 4.0])


def test_the_students_boundaries_have_both_sides_and_the_teachers_width() -> None:
    seen: list[StepOutputs] = []
    prepared = ready("digits", method("ab", ab_steps=1, steps=0, batch_size=4))
    [phase] = prepared.plan.phases
    assert [feature.block for feature in phase.features] == [1, 2]
    assert all(isinstance(feature.connector, BoundaryConnector) for feature in phase.features)
    watched(prepared, lambda number, batch: seen.append(batch)).run()
    for mine, theirs, wide in zip(seen[0].features, seen[0].teacher_features, (64, 128), strict=True):
        assert mine.shape == theirs.shape
        assert mine.shape[1] == wide
        assert 0.2 < float((mine > 0).float().mean()) < 0.8
        # a teacher's response behind a ReLU is zero or on
        assert float(theirs.min()) == 0
        assert float(theirs.max()) > 0


def test_boundaries_are_learned_without_logits() -> None:
    [phase] = AB().objective(pairing()).before
    assert phase.teacher is not None
    assert len(phase.teacher) == len(phase.model) == 3


# --- FSP


def test_flows_have_connectors_only_where_widths_differ() -> None:
    [phase] = method("fsp").objective(pairing()).before
    # the flow through the second block begins behind the inherited first one, where both are 32 wide
    assert [feature.block for feature in phase.features] == [0, 1, 2]
    same, *others = [feature.connector for feature in phase.features]
    assert same is None
    assert all(isinstance(connector, Projector) for connector in others)
    assert [tuple(p.shape) for c in others if c is not None for p in c.parameters()] == [
        (64, 32, 1, 1),
        (128, 64, 1, 1),
    ]
    assert [feature.connector for feature in phase.teacher_features] == [None] * 3


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_flows_by_loops(preset: str) -> None:
    chosen = choose("fsp", preset, Budget(10, 10)).method
    assert isinstance(chosen, Baseline)
    [phase] = chosen.objective(pairing()).before
    shapes = [(B, 2, 4, 4), (B, 3, 2, 2), (B, 4, 1, 1)]
    mine = [random(*shape, seed=1) for shape in shapes]
    theirs = [random(*shape, seed=2) for shape in shapes]

    def flow(start: Tensor, end: Tensor) -> np.ndarray:
        pooled = F.max_pool2d(start, start.shape[2] // end.shape[2]).numpy()
        matrix = np.zeros((B, start.shape[1], end.shape[1]))
        for b, i, j in np.ndindex(matrix.shape):
            matrix[b, i, j] = np.sum(pooled[b, i] * end[b, j].numpy()) / end[b, j].numel()
        return matrix

    expected = 0.0
    for (s1, s2), (t1, t2) in zip(pairwise(mine), pairwise(theirs), strict=True):
        squares = (flow(s1, s2) - flow(t1, t2)) ** 2
        expected += np.mean(squares) if preset == "default" else np.mean([np.sum(sample) for sample in squares])
    batch = StepOutputs(mine[-1], theirs[-1], None, tuple(mine), tuple(theirs))
    assert values(phase.objective(batch)) == {"flows": pytest.approx(expected)}


def one_cut() -> Pairing:
    whole = pairing("none")
    return Pairing(whole.teacher.merge([1]), whole.student.merge([1]))


def test_a_flow_needs_two_cuts() -> None:
    with pytest.raises(RequestError, match="fsp needs a trained block between two cuts"):
        method("fsp").plan(one_cut())


def test_features_need_a_trained_block_in_front_of_the_head() -> None:
    whole = one_cut()
    inherited = Pairing(whole.teacher, whole.student, inherited=1)
    for name in ("fitnets", "at", "nst", "ft", "ab", "rkd", "one", "byot"):
        assert method(name).plan(whole).phases
        with pytest.raises(RequestError, match="all blocks but the head are inherited"):
            method(name).plan(inherited)


# --- NST and RKD


def test_selectivity_skips_maps_of_one_pixel() -> None:
    start = pairing()
    assert [cut.size for cut in start.student.cuts] == [(4, 4), (2, 2), (1, 1)]
    objective = method("nst", nst_weight=7.0).objective(start)
    assert [f.block for f in objective.features] == [f.block for f in objective.teacher_features] == [1]
    # of the other pair's two cuts the last one has maps of 8x8
    families = ready("families", method("nst")).plan.phases[-1]
    assert [feature.block for feature in families.features] == [1]

    student, teacher, logits = random(B, 2, 3, 3), random(B, 4, 3, 3, seed=1), random(B, K)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        units = [[row.ravel() / np.sqrt(np.sum(row**2)) for row in rows] for rows in (x, y)]
        return float(np.mean([np.dot(a, b) ** 2 for a in units[0] for b in units[1]]))

    pairs = zip(student.numpy(), teacher.numpy(), strict=True)
    expected = np.mean([kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in pairs])
    terms = values(objective.terms(StepOutputs(logits, logits, None, (student,), (teacher,))))
    assert terms["selectivity"] == pytest.approx(7 * expected)


def test_relations_are_those_of_the_last_maps_averages() -> None:
    objective = method("rkd", distance_weight=3.0, angle_weight=5.0).objective(pairing())
    [mine], [theirs] = objective.features, objective.teacher_features
    assert mine.block == theirs.block == 2
    maps = random(B, 6, 4, 4)
    for feature in (mine, theirs):
        assert feature.connector is not None
        np.testing.assert_allclose(feature.connector(maps).numpy(), maps.numpy().mean(axis=(2, 3)))

    student, teacher, logits = random(4, 5), random(4, 7, seed=1), random(4, K)

    def huber(difference: float) -> float:
        return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5

    def distances(e: np.ndarray) -> np.ndarray:
        lengths = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
        return lengths / lengths[lengths > 0].mean()

    def angle(e: np.ndarray, i: int, j: int, k: int) -> float:
        if j in {i, k} or i == k:
            return 0.0
        a, b = e[i] - e[j], e[k] - e[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    s, t = student.numpy(), teacher.numpy()
    by_distance = np.mean([huber(a - b) for a, b in zip(distances(s).ravel(), distances(t).ravel(), strict=True)])
    by_angle = np.mean([huber(angle(s, *ijk) - angle(t, *ijk)) for ijk in np.ndindex(4, 4, 4)])
    terms = values(objective.terms(StepOutputs(logits, logits, None, (student,), (teacher,))))
    assert terms["distances"] == pytest.approx(3 * by_distance)
    assert terms["angles"] == pytest.approx(5 * by_angle)


def test_the_digits_networks_are_what_these_tests_take_them_for() -> None:
    teacher, student = networks("digits")
    assert pairing().widths == [(32, 32), (64, 32), (128, 64)]
    assert sum(p.numel() for p in teacher.parameters()) > sum(p.numel() for p in student.parameters())
