"""Born-again networks: generations, their teachers and steps, and their loss against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netgraft.errors import RequestError
from netgraft.methods.peers import AveragingEnsemble
from netgraft.modules import state_digest
from netgraft.plan import StepOutputs
from tests.support.method_pairs import (
    PLAIN,
    cross_entropy,
    divergence,
    method,
    objective_of,
    pairing,
    prepare_run,
    random,
    softmax,
    values,
    with_observer,
)

B, K = 4, 6


LABELS = [5, 0, 3, 3]


def test_generations_start_alike_are_others_and_the_last_is_deployed() -> None:
    start = pairing()
    blocks = start.student.blocks()
    begun = state_digest(nn.Sequential(*blocks[1:]))
    plan = method("ban", generations=3).plan(start)
    born = [phase.trainable for phase in plan.phases]
    assert [state_digest(generation) for generation in born] == [begun] * 3
    for number, generation in enumerate(born):
        for other in born[:number]:
            assert {*generation.parameters()}.isdisjoint(other.parameters())
    assert {*born[-1].parameters()} == {p for block in blocks[1:] for p in block.parameters()}
    assert [*plan.student] == blocks
    # the first is taught by the teacher, each other by the one before
    assert [*(plan.phases[0].teacher or [])] == start.teacher.blocks()
    assert [phase.teacher for phase in plan.phases[1:]] == [phase.model for phase in plan.phases[:-1]]


def test_a_generations_target_is_the_formers_logits() -> None:
    seen: list[tuple[int, StepOutputs]] = []
    prepared = prepare_run("digits", method("ban", generations=3, steps=6, batch_size=4, lr=1e-2), views=PLAIN)
    with_observer(prepared, lambda number, batch: seen.append((number, batch))).run()
    images = prepared.views.batch(range(4))
    assert len(seen) == 6
    with torch.no_grad():
        teachers = [prepared.pairing.teacher.eval(), *(phase.model.eval() for phase in prepared.plan.phases)]
        logits = [teacher(images) for teacher in teachers]
    for number, batch in seen:
        assert batch.target is not None
        nearest = [float(torch.cdist(batch.target, given).min(1).values.max()) for given in logits[:3]]
        # of the three that teach, the one that was trained last
        assert nearest[number] < 1e-4
        assert all(distance > 1e-2 for other, distance in enumerate(nearest) if other != number)


@pytest.mark.parametrize(("steps", "generations"), [(10, 3), (3000, 7), (3, 3), (8, 1)])
def test_generations_share_out_the_steps(steps: int, generations: int) -> None:
    plan = method("ban", steps=steps, generations=generations).plan(pairing())
    shares = [phase.schedule.steps for phase in plan.phases]
    assert len(shares) == generations
    assert sum(shares) == steps == plan.steps
    assert max(shares) - min(shares) <= 1


def test_a_generation_without_a_step_is_refused() -> None:
    with pytest.raises(RequestError, match="2 steps can't be shared out among 3 generations"):
        method("ban", steps=2, generations=3)
    with pytest.raises(RequestError, match="generations must be at least 1"):
        method("ban", generations=0)


def test_generations_learn_from_soft_targets_and_labels() -> None:
    student, teacher = random(B, K), random(B, K, seed=1)
    soft = divergence(teacher.numpy(), student.numpy(), 2.0)
    taught = objective_of("ban", temperature=2.0, ce_weight=3.0)
    assert values(taught(StepOutputs(student, teacher, None))) == {"kd": pytest.approx(soft)}
    terms = values(taught(StepOutputs(student, teacher, torch.tensor(LABELS))))
    hard = cross_entropy(student.numpy(), LABELS)
    assert terms == {"kd": pytest.approx(soft), "labels": pytest.approx(3 * hard)}


def test_the_ensemble_of_generations_has_their_mean_probabilities() -> None:
    plan = method("ban", generations=2).plan(pairing())
    assert isinstance(plan.ensemble, AveragingEnsemble)
    for phase in plan.phases:
        nn.init.normal_([*phase.model.parameters()][-1])
    images = random(B, 1, 8, 8).float()
    with torch.no_grad():
        together = plan.ensemble.eval()(images).numpy().astype(float)
        each = [softmax(phase.model(images).numpy().astype(float)) for phase in plan.phases]
    assert np.abs(each[0] - each[1]).max() > 1e-2
    np.testing.assert_allclose(softmax(together), (each[0] + each[1]) / 2, rtol=1e-4)
