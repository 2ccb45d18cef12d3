"""Neuron selectivity, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from netgraft.grafting.pairing import Pairing
from netgraft.methods.method import Budget
from netgraft.methods.nst import NST
from netgraft.methods.registry import choose
from netgraft.plan import StepOutputs
from netgraft.splitting.chain import BlockChain, Cut
from tests.support.method_pairs import method, pairing, prepare_run, random, values

B, K = 3, 10


def test_selectivity_skips_maps_of_one_pixel() -> None:
    start = pairing()
    assert [cut.size for cut in start.student.cuts] == [(4, 4), (2, 2), (1, 1)]
    objective = method("nst", nst_weight=7.0).objective(start)
    assert [f.block for f in objective.features] == [f.block for f in objective.teacher_features] == [1]
    # of the other pair's two cuts the last one has maps of 8x8
    families = prepare_run("families", method("nst")).plan.phases[-1]
    assert [feature.block for feature in families.features] == [1]

    student, teacher, logits = random(B, 2, 3, 3), random(B, 4, 3, 3, seed=1), random(B, K)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        units = [[row.ravel() / np.sqrt(np.sum(row**2)) for row in rows] for rows in (x, y)]
        return float(np.mean([np.dot(a, b) ** 2 for a in units[0] for b in units[1]]))

    pairs = zip(student.numpy(), teacher.numpy(), strict=True)
    expected = np.mean([kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in pairs])
    terms = values(objective.terms(StepOutputs(logits, logits, None, (student,), (teacher,))))
    assert terms["selectivity"] == pytest.approx(7 * expected)


def test_repdistiller_adds_all_block_ends() -> None:
    start = pairing("none")
    chosen = choose("nst", "repdistiller", Budget(10, 10)).method
    assert isinstance(chosen, NST)
    objective = chosen.objective(start)
    assert [feature.block for feature in objective.features] == [0, 1]
    logits = random(B, K)
    pairs = [(random(B, 4, 4, 4, seed=n), random(B, 4, 4, 4, seed=n + 9)) for n in range(2)]
    singles = [
        values(method("nst").objective(start).terms(StepOutputs(logits, logits, None, (s,), (t,))))["selectivity"]
        for s, t in pairs
    ]
    students, teachers = zip(*pairs, strict=True)
    terms = values(objective.terms(StepOutputs(logits, logits, None, students, teachers)))
    assert terms["selectivity"] == pytest.approx(sum(singles))


@pytest.mark.parametrize("blocks", ["last", "all"])
def test_where_no_block_end_has_a_map_the_last_one_is_compared(blocks: str) -> None:
    def chain() -> BlockChain:
        cuts = [Cut(f"s{number}", (3, 1, 1), "NCHW") for number in range(4)]
        return BlockChain([nn.Conv2d(3, 3, 1) for _ in range(5)], [*(cut.name for cut in cuts), "head"], cuts)

    objective = method("nst", nst_blocks=blocks).objective(Pairing(chain(), chain()))
    assert [feature.block for feature in objective.features] == [3]
    assert [feature.block for feature in objective.teacher_features] == [3]
