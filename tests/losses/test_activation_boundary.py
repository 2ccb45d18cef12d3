"""Activation boundaries against their formula, neuron by neuron."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from netgraft.losses.activation_boundary import ActivationBoundary
from tests.support.losses import noise


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(1, 7), (5, 2, 3, 4)])
def test_boundary_loss_equals_the_formula(margin: float, shape: tuple[int, ...]) -> None:
    s, t = noise(*shape, seed=50), noise(*shape, seed=51)
    total = 0.0
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        rho = 1 if b > 0 else 0
        total += (rho * max(0.0, margin - a) + (1 - rho) * max(0.0, margin + a)) ** 2
    assert ActivationBoundary(margin)(s, t).item() == pytest.approx(total / shape[0], rel=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "cost"),
    [
        (0.25, 5.0, 0.75**2),
        (-1.0, 5.0, 4.0),
        (1.0, 5.0, 0.0),
        (-0.25, -5.0, 0.75**2),
        (1.0, -5.0, 4.0),
        (-9.0, -5.0, 0.0),
        (0.0, 0.0, 1.0),
        (-1.0, 0.0, 0.0),  # a response of 0 isn't active
        (1.0, 0.0, 4.0),
    ],
)
def test_boundary_loss_by_hand(student: float, teacher: float, cost: float) -> None:
    assert ActivationBoundary()(torch.tensor([[student]]), torch.tensor([[teacher]])).item() == cost


def test_only_the_side_of_the_teacher_counts() -> None:
    s, t = noise(4, 3, 2, 2, seed=52), noise(4, 3, 2, 2, seed=53)
    scales = noise(4, 3, 2, 2, seed=54).exp()
    assert ActivationBoundary()(s, t).item() == ActivationBoundary()(s, t * scales).item()
    # the two sides are treated alike
    assert ActivationBoundary()(s, t).item() == pytest.approx(ActivationBoundary()(-s, -t).item(), rel=1e-12)


def disagreement(student: Tensor, teacher: Tensor) -> float:
    """The part of the neurons that are active in one network alone."""
    return ((teacher > 0) != (student > 0)).float().mean().item()


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_boundary_loss_bounds_the_disagreement(margin: float) -> None:
    s, t = noise(6, 5, seed=55), noise(6, 5, seed=56)
    assert 0 < disagreement(s, t) < 1
    assert ActivationBoundary(margin)(s, t).item() >= margin**2 * 5 * disagreement(s, t)
    # the bound is reached by a student whose wrong neurons are inactive at 0 and whose right ones are beyond the margin
    s = torch.where(t > 0, torch.where(s > 0, 2 * margin, 0.0), -2 * margin)
    expected = margin**2 * 5 * disagreement(s, t)
    assert expected > 0
    assert ActivationBoundary(margin)(s, t).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("margin", [0, -1.0, math.inf, math.nan])
def test_impossible_margins_are_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin must be a finite number above 0, not {margin}"):
        ActivationBoundary(margin)
