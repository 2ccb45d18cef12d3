"""FitNets: what the hint phase runs and trains, and its loss by formula."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from netgraft.methods.fitnets import FitNets
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.plan import StepOutputs
from tests.support.method_pairs import (
    PLAIN,
    Losses,
    cross_entropy,
    method,
    pairing,
    prepare_run,
    random,
    values,
    with_observer,
)

B, K = 3, 10


def hints(student: np.ndarray, teacher: np.ndarray) -> float:
    """``1/2 ||F_T - F_S||^2``, averaged over the batch."""
    return float(np.mean([0.5 * np.sum((t - s) ** 2) for s, t in zip(student, teacher, strict=True)]))


def test_the_hint_phase_runs_no_block_behind_the_hint() -> None:
    # of four blocks the first is inherited; the middle of the two between it and the head is the second
    prepared = prepare_run("digits", method("fitnets", hint_steps=3, steps=0, batch_size=4))
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
    prepared = prepare_run("digits", method("fitnets", hint_steps=1, steps=0, batch_size=1), count=1, views=PLAIN)
    with_observer(prepared, lambda number, batch: seen.append(batch)).run()
    with torch.no_grad():
        expected = nn.Sequential(*prepared.pairing.teacher.eval().blocks()[:2])(prepared.views.batch([0]))
    assert expected.shape == (1, 64, 2, 2)
    assert seen[0].target is not None
    torch.testing.assert_close(seen[0].target, expected)


@pytest.mark.parametrize(("reduction", "summed"), [("sample", True), ("element", False)])
def test_the_articles_hint_is_a_sum_and_the_default_a_mean(reduction: str, summed: bool) -> None:
    assert method("fitnets").hint_reduction == "element"
    chosen = method("fitnets", hint_reduction=reduction)
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


def test_repdistillers_hint_is_a_term_behind_a_normalised_regressor() -> None:
    chosen = choose("fitnets", "repdistiller", Budget(10, 10)).method
    assert isinstance(chosen, FitNets)
    start = pairing()
    [phase] = chosen.plan(start).phases
    [feature] = phase.features
    assert feature.connector is not None
    kinds = [type(layer) for layer in feature.connector.modules() if not list(layer.children())]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    student, teacher = random(B, 4, 2, 2), random(B, 4, 2, 2, seed=1)
    output, target = random(B, K, seed=2), random(B, K, seed=3)
    terms = values(phase.objective(StepOutputs(output, target, None, (student,), (teacher,))))
    assert terms == {
        "classes": pytest.approx(cross_entropy(output.numpy(), target.argmax(1).tolist())),
        "hint": pytest.approx(100 * np.mean((student - teacher).numpy() ** 2)),
    }
