"""Activation boundaries, by hand."""

from __future__ import annotations

import pytest
import torch

from netgraft.methods.connectors import BoundaryConnector
from netgraft.methods.registry import AB
from netgraft.plan import StepOutputs
from tests.support.method_pairs import method, pairing, prepare_run, values, with_observer


def test_boundaries_by_hand() -> None:
    # margin 2; teacher on, off, on, off; distances to the right side 2 - 3 -> 0, 2 + 1 = 3, 2 - (-1) = 3, 2 - 3 -> 0
    teacher = torch.tensor([[1.0, 0.0, 5.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[3.0, 1.0, -1.0, -3.0]], dtype=torch.float64)
    [phase] = method("ab", ab_margin=2.0).objective(pairing()).before
    two = StepOutputs(student, teacher, None, (student, 0 * student[:, :2]), (teacher, teacher[:, :2]))
    # the mean over 4 neurons of 0, 9, 9, 0; a student at 0 is 2 short of either side
    assert list(values(phase.objective(two)).values()) == pytest.approx([18 / 4, 4.0])


def test_the_students_boundaries_have_both_sides_and_the_teachers_width() -> None:
    seen: list[StepOutputs] = []
    prepared = prepare_run("digits", method("ab", ab_steps=1, steps=0, batch_size=4))
    [phase] = prepared.plan.phases
    assert [feature.block for feature in phase.features] == [1, 2]
    assert all(isinstance(feature.connector, BoundaryConnector) for feature in phase.features)
    with_observer(prepared, lambda number, batch: seen.append(batch)).run()
    for student, teacher, wide in zip(seen[0].features, seen[0].teacher_features, (64, 128), strict=True):
        assert student.shape == teacher.shape
        assert student.shape[1] == wide
        assert 0.2 < float((student > 0).float().mean()) < 0.8
        # a teacher's response behind a ReLU is zero or on
        assert float(teacher.min()) == 0
        assert float(teacher.max()) > 0


def test_boundaries_are_learned_without_logits() -> None:
    [phase] = AB().objective(pairing()).before
    assert phase.teacher is not None
    assert len(phase.teacher) == len(phase.model) == 3
