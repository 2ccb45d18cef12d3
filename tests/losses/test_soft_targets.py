"""Soft targets against their formula, and against the limits that the article names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from netgraft.losses.soft_targets import SoftTargets, softened
from tests.support.losses import noise

Array = NDArray[np.float64]


HALF = [torch.float16, torch.bfloat16]


def divergence(student: Array, teacher: Array, temperature: float) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        q_s = [math.exp(z / temperature) for z in z_s]
        q_t = [math.exp(z / temperature) for z in z_t]
        for k in range(len(z_s)):
            p_s, p_t = q_s[k] / sum(q_s), q_t[k] / sum(q_t)
            total += p_t * math.log(p_t / p_s)
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("batch", "classes"), [(1, 10), (5, 2), (7, 100)])
def test_soft_targets_equal_the_formula(temperature: float, batch: int, classes: int) -> None:
    s, t = noise(batch, classes, seed=20), 3 * noise(batch, classes, seed=21)
    expected = divergence(s.numpy(), t.numpy(), temperature)
    assert SoftTargets(temperature)(s, t).item() == pytest.approx(expected, rel=1e-11)


def test_the_default_temperature_is_4() -> None:
    s, t = noise(3, 5, seed=22), noise(3, 5, seed=23)
    assert SoftTargets()(s, t).item() == pytest.approx(divergence(s.numpy(), t.numpy(), 4), rel=1e-11)


@pytest.mark.parametrize(
    ("logits", "temperature", "first"), [((5, 1), 1, 0.982), ((5, 1), 10, 0.599), ((3, 2), 1, 0.731)]
)
def test_softened_logits(logits: tuple[float, float], temperature: float, first: float) -> None:
    for dtype in (torch.float16, torch.float64):
        probabilities = softened(torch.tensor([logits], dtype=dtype), temperature)
        assert probabilities[0, 0].item() == pytest.approx(first, abs=5e-4)
        assert probabilities.sum().item() == pytest.approx(1, rel=1e-6)
        assert probabilities.dtype != torch.float16


def test_high_temperature_compares_logits() -> None:
    # softmax(z / tau) = (1 + z_k / tau) / K + O(tau^-2) for logits of mean zero, and
    # KL(p || q) = sum_k (p_k - q_k)^2 / (2 q_k) to second order, whose leading term is (z_T - z_S)^2 / (2 K tau^2)
    s, t = noise(4, 6, seed=24), noise(4, 6, seed=25)
    s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    expected = sum((a - b) ** 2 / (2 * 6) for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True)) / 4
    errors = [abs(SoftTargets(temperature)(s, t).item() - expected) for temperature in (100.0, 1000.0)]
    assert errors[1] < 1e-3 * expected
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    s, t = noise(4, 6, seed=26), noise(4, 6, seed=27)
    shift = noise(4, 1, seed=28)
    torch.testing.assert_close(SoftTargets()(s + shift, t - 2 * shift), SoftTargets()(s, t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_huge_logits_stay_finite(dtype: torch.dtype) -> None:
    s = torch.tensor([[1e4, 0, -1e4], [-1e4, 0, 1e4]], dtype=dtype, requires_grad=True)
    t = torch.tensor([[-1e4, 0, 1e4], [-1e4, 0, 1e4]], dtype=dtype, requires_grad=True)
    loss = SoftTargets(temperature=2)(s, t)
    # one probability of the teacher is 1, the others underflow; the student's logarithm there is -2e4 / 2
    assert loss.item() == pytest.approx((s[0, 0] - s[0, 2]).item() / 2 * 2**2 / 2, rel=1e-6)
    for gradient in torch.autograd.grad(loss, (s, t)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be a finite number above 0, not {temperature}"):
        SoftTargets(temperature)
    with pytest.raises(ValueError, match="temperature"):
        softened(torch.zeros(1, 2), temperature)
