"""Flows of the solution procedure, against plain loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from torch import Tensor
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.grafting.adapters import Projector
from netgraft.methods.baseline import Baseline
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.plan import StepOutputs
from tests.support.method_pairs import method, one_cut, pairing, random, values

B, K = 3, 10


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
    student = [random(*shape, seed=1) for shape in shapes]
    teacher = [random(*shape, seed=2) for shape in shapes]

    def flow(start: Tensor, end: Tensor) -> np.ndarray:
        pooled = F.max_pool2d(start, start.shape[2] // end.shape[2]).numpy()
        matrix = np.zeros((B, start.shape[1], end.shape[1]))
        for b, i, j in np.ndindex(matrix.shape):
            matrix[b, i, j] = np.sum(pooled[b, i] * end[b, j].numpy()) / end[b, j].numel()
        return matrix

    expected = 0.0
    for (s1, s2), (t1, t2) in zip(pairwise(student), pairwise(teacher), strict=True):
        squares = (flow(s1, s2) - flow(t1, t2)) ** 2
        expected += np.mean(squares) if preset == "default" else np.mean([np.sum(sample) for sample in squares])
    batch = StepOutputs(student[-1], teacher[-1], None, tuple(student), tuple(teacher))
    assert values(phase.objective(batch)) == {"flows": pytest.approx(expected)}


def test_a_flow_needs_two_cuts() -> None:
    with pytest.raises(RequestError, match="fsp needs a trained block between two cuts"):
        method("fsp").plan(one_cut())


def test_in_the_flow_phase_no_network_runs_its_head() -> None:
    start = pairing()
    [flows] = method("fsp").objective(start).before
    assert flows.teacher is not None
    assert [*flows.model] == start.student.blocks()[:3]
    assert [*flows.teacher] == start.teacher.blocks()[:3]
