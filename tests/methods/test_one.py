"""The native ensemble: its branches, its gate, and its loss against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netgraft.errors import RequestError
from netgraft.methods.one import Gate, GatedEnsemble
from netgraft.methods.peers import Peers
from netgraft.modules import state_digest
from netgraft.plan import StepOutputs
from netgraft.progress import SilentReporter
from tests.support.method_pairs import (
    cross_entropy,
    cross_entropy_slope,
    divergence,
    layers,
    leaf,
    method,
    objective_of,
    pairing,
    prepare_run,
    random,
    slopes,
    softmax,
    values,
    with_observer,
)

B, K = 4, 6

LABELS = [5, 0, 3, 3]


def test_low_blocks_are_shared_and_branches_start_differently() -> None:
    start = pairing()
    blocks = start.student.blocks()
    plan = method("one", branches=3).plan(start)
    [phase] = plan.phases
    *low, ensemble = phase.model
    # the last stage in front of the head branches, with the head
    assert low == blocks[:2]
    assert isinstance(ensemble, GatedEnsemble)
    branches = [*ensemble.branches.networks]
    assert layers(branches[0]) == layers(nn.Sequential(*blocks[2:]))
    assert len({state_digest(branch) for branch in branches}) == 3
    assert {*branches[1].parameters()}.isdisjoint(branches[2].parameters())
    assert [*plan.student] == blocks
    assert {*blocks[1].parameters()} <= {*phase.trainable.parameters()}


def test_the_ensemble_is_the_gated_sum() -> None:
    torch.manual_seed(0)
    gate = Gate(5, 3)
    ensemble = GatedEnsemble(Peers([nn.Sequential(nn.Flatten(), nn.Linear(20, K)) for _ in range(3)]), gate)
    shared = random(B, 5, 2, 2).float()
    with torch.no_grad():
        weights, logits = gate(shared), ensemble(shared)
    assert weights.shape == (B, 3)
    np.testing.assert_allclose(weights.numpy().sum(axis=1), np.ones(B), rtol=1e-6)
    assert float(weights.std(0).min()) > 1e-3
    assert logits.shape == (B, 4, K)
    for sample in range(B):
        expected = sum(float(w) * z for w, z in zip(weights[sample], logits[sample, :3].double().numpy(), strict=True))
        np.testing.assert_allclose(logits[sample, 3].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_gate_is_a_norm_and_a_rectifier_behind_averages() -> None:
    torch.manual_seed(0)
    gate, shared = Gate(5, 3), random(B, 5, 2, 2)
    [linear] = [layer for layer in gate if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        found = gate.double()(shared).numpy()
    scores = shared.numpy().mean((2, 3)) @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    normed = (scores - scores.mean(0)) / np.sqrt(scores.var(0) + 1e-5)
    assert (normed < 0).any()
    np.testing.assert_allclose(found, softmax(np.maximum(normed, 0)), rtol=1e-5)


def test_the_native_ensemble_is_reported_as_it_was_trained() -> None:
    plan = method("one").plan(pairing())
    assert plan.ensemble is not None
    images = random(B, 1, 8, 8).float()
    with torch.no_grad():
        together = plan.ensemble.eval()(images)
        torch.testing.assert_close(together, plan.phases[0].model.eval()(images)[:, 3])


def test_branches_learn_from_their_ensemble_which_learns_from_classes_alone() -> None:
    temperature = 3.0
    logits = leaf(B, 3, K)  # of two branches and their ensemble
    terms = objective_of("one", branches=2)(StepOutputs(logits, None, torch.tensor(LABELS)))
    z = logits.detach().numpy()
    branches, ensemble = [z[:, 0], z[:, 1]], z[:, 2]
    assert values(terms) == {
        "ensemble": pytest.approx(cross_entropy(ensemble, LABELS)),
        "branches": pytest.approx(sum(cross_entropy(one, LABELS) for one in branches)),
        "from the ensemble": pytest.approx(sum(divergence(ensemble, one, temperature) for one in branches)),
    }
    expected = np.stack([cross_entropy_slope(one, LABELS) for one in (*branches, ensemble)], axis=1)
    for number, one in enumerate(branches):
        # tau^2 KL has the slope tau (q - p)
        expected[:, number] += temperature * (softmax(one, temperature) - softmax(ensemble, temperature)) / B
    np.testing.assert_allclose(slopes(terms, logits), expected, atol=1e-7)


# of 300 epochs, by hand: 80 of them ramp up, exp(-5 (1 - epoch / 80)^2)
@pytest.mark.parametrize(
    ("epoch", "weight"), [(0, 0.006738), (20, 0.060055), (40, 0.286505), (79, 0.999219), (80, 1.0), (299, 1.0)]
)
def test_the_ensembles_lesson_sets_in_as_in_the_authors_program(epoch: int, weight: float) -> None:
    logits = leaf(B, 4, K)
    taught = objective_of("one", rampup=80 / 300)
    terms, full = (
        values(taught(StepOutputs(logits, None, torch.tensor(LABELS), progress=progress)))
        for progress in (epoch / 300, 1.0)
    )
    assert full["from the ensemble"] > 0.1
    assert terms.pop("from the ensemble") == pytest.approx(weight * full.pop("from the ensemble"), rel=1e-4)
    assert terms == full


def test_a_lesson_without_a_ramp_is_whole_from_the_first_step() -> None:
    logits, taught = leaf(B, 4, K), objective_of("one", rampup=0.0)
    first, last = (taught(StepOutputs(logits, None, torch.tensor(LABELS), progress=at)) for at in (0.0, 1.0))
    assert values(first) == values(last)


@pytest.mark.parametrize("rampup", [-0.1, 1.1, float("nan")])
def test_a_ramp_is_a_share_of_the_steps(rampup: float) -> None:
    with pytest.raises(RequestError, match=r"rampup must be (from 0 to 1|a finite number), not"):
        method("one", rampup=rampup)


def test_a_run_says_how_far_it_is() -> None:
    seen: list[float] = []
    prepared = prepare_run("digits", method("one", steps=5, batch_size=4))
    with_observer(prepared, lambda number, batch: seen.append(batch.progress)).run(reporter=SilentReporter())
    assert seen == [0.0, 0.2, 0.4, 0.6, 0.8]
