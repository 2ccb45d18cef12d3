"""Attention transfer by activations, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from netgraft.methods.baseline import Baseline
from netgraft.plan import StepOutputs
from tests.support.method_pairs import method, one_cut, pairing, random, values

B, K = 3, 10


def test_attention_of_every_block_end_counts() -> None:
    chosen = method("at", at_weight=3.0, at_form="code")
    assert isinstance(chosen, Baseline)
    objective = chosen.objective(pairing("none"))
    assert [f.block for f in objective.features] == [f.block for f in objective.teacher_features] == [0, 1]
    shapes = [(B, 4, 4, 4), (B, 6, 2, 2)]
    student = [random(*shape, seed=1) for shape in shapes]
    teacher = [random(*shape, seed=2) for shape in shapes]
    expected = 0.0
    for pair in zip(student, teacher, strict=True):
        maps = []
        for features in pair:
            strength = np.array([sum(channel**2 for channel in sample).ravel() for sample in features.numpy()])
            maps.append(np.array([row / np.sqrt(np.sum(row**2)) for row in strength]))
        expected += 3.0 * np.mean((maps[0] - maps[1]) ** 2)
    logits = random(B, K)
    terms = values(objective.terms(StepOutputs(logits, logits, None, tuple(student), tuple(teacher))))
    assert terms["attention"] == pytest.approx(expected)


def test_maps_of_one_position_are_not_compared_and_the_plan_says_so() -> None:
    plan = method("at").plan(pairing())
    assert [feature.block for feature in plan.phases[-1].features] == [1]
    assert "at compares no attention behind block 3, where maps have one position" in str(plan)


def test_where_all_block_ends_are_compared_there_is_nothing_to_tell() -> None:
    objective = method("at").objective(one_cut())
    assert len(objective.features) == 1
    assert objective.notes == ()
