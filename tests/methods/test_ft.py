"""Factor transfer: the paraphraser learns first and alone, and factors are compared by formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netgraft.errors import RequestError
from netgraft.methods.baseline import Baseline
from netgraft.methods.connectors import Paraphraser
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.modules import state_digest
from netgraft.plan import StepOutputs
from tests.support.method_pairs import PLAIN, Losses, method, pairing, prepare_run, random, values, with_observer

B, K = 3, 10


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
    prepared = prepare_run("digits", chosen, views=PLAIN)
    first, second = prepared.plan.phases
    paraphraser = first.trainable
    assert isinstance(paraphraser, Paraphraser)
    between = Between(prepared.pairing.student, paraphraser)
    with_observer(prepared, lambda number, batch: seen.append((number, batch))).run(reporter=between)
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


@pytest.mark.parametrize(("preset", "weight"), [("default", 500.0), ("paper", 1.0)])
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


@pytest.mark.parametrize("norm", [True, False])
def test_norms_of_the_paraphraser_are_asked_for(norm: bool) -> None:
    [first] = method("ft", ft_norm=norm).objective(pairing()).before
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in first.trainable.modules()) == norm
