"""Deep mutual learning, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netgraft.methods.peers import Peers
from netgraft.modules import state_digest
from netgraft.plan import StepOutputs
from tests.support.method_pairs import (
    cross_entropy,
    cross_entropy_slope,
    divergence,
    layers,
    leaf,
    method,
    objective_of,
    pairing,
    slopes,
    softmax,
    values,
)

B, K = 4, 6

LABELS = [5, 0, 3, 3]


def test_peers_start_differently_and_the_first_is_deployed() -> None:
    start = pairing()
    plan = method("dml", peers=3).plan(start)
    [phase] = plan.phases
    together = phase.model[-1]
    assert isinstance(together, Peers)
    assert len({state_digest(peer) for peer in together.networks}) == 3
    for before, after in zip(together.networks, [*together.networks][1:], strict=False):
        assert {*before.parameters()}.isdisjoint(after.parameters())
        shapes = [[p.shape for p in peer.parameters()] for peer in (before, after)]
        assert shapes[0] == shapes[1]
    assert layers(together.networks[0]) == layers(nn.Sequential(*start.student.blocks()[1:]))
    assert [*plan.student] == start.student.blocks()


def test_mutual_learning_and_its_gradient_by_formula() -> None:
    peers, weight = 3, 0.7
    logits = leaf(B, peers, K)
    terms = objective_of("dml", peers=peers, mutual_weight=weight)(StepOutputs(logits, None, torch.tensor(LABELS)))
    z = [logits.detach().numpy()[:, peer] for peer in range(peers)]
    others = [(i, j) for i in range(peers) for j in range(peers) if i != j]
    assert values(terms) == {
        "classes": pytest.approx(sum(cross_entropy(one, LABELS) for one in z)),
        "mutual": pytest.approx(weight * sum(divergence(z[j], z[i], 1.0) for i, j in others) / (peers - 1)),
    }
    # the slope of KL(p_j || p_i) at peer i's logits is p_i - p_j; none goes to peer j, which teaches
    expected = np.zeros((B, peers, K))
    for i, one in enumerate(z):
        expected[:, i] = cross_entropy_slope(one, LABELS)
    for i, j in others:
        expected[:, i] += weight / (peers - 1) * (softmax(z[i]) - softmax(z[j])) / B
    np.testing.assert_allclose(slopes(terms, logits), expected, atol=1e-7)
