from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netgraft.losses.activation_boundary import ActivationBoundary
from netgraft.losses.attention_transfer import AttentionTransfer
from netgraft.losses.gradient_attention import GradientAttention
from netgraft.losses.hint import Hint
from netgraft.losses.soft_targets import SoftTargets, softened

Array = NDArray[np.float64]


HALF = [torch.float16, torch.bfloat16]

MAPS = (3, 4, 2, 5)


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class OnePair(nn.Module):
    """Gives attention transfer the signature of the other losses."""

    def __init__(self, power: float = 2.0, form: str = "paper") -> None:
        super().__init__()
        self.loss = AttentionTransfer(power, form)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss([student], [teacher])


LOSSES = {
    "soft targets": (SoftTargets(), (3, 6)),
    "hint": (Hint(), MAPS),
    "hint, element": (Hint("element"), MAPS),
    "attention": (OnePair(), MAPS),
    "attention, power 1": (OnePair(power=1), MAPS),
    "attention, power 3.5": (OnePair(power=3.5), MAPS),
    "attention, code": (OnePair(form="code"), MAPS),
    "gradient attention": (GradientAttention(), MAPS),
    "boundary": (ActivationBoundary(), MAPS),
}

each_loss = pytest.mark.parametrize(("loss", "shape"), LOSSES.values(), ids=LOSSES.keys())


# ---- what holds for every one of them


@each_loss
def test_gradient_by_finite_differences(loss: nn.Module, shape: tuple[int, ...]) -> None:
    s, t = noise(*shape, seed=10).requires_grad_(), noise(*shape, seed=11).requires_grad_()
    assert torch.autograd.gradcheck(loss, (s, t))


@each_loss
def test_is_a_mean_over_the_batch(loss: nn.Module, shape: tuple[int, ...]) -> None:
    s, t = noise(*shape, seed=12), 2 * noise(*shape, seed=13)
    one_by_one = [loss(s[b : b + 1], t[b : b + 1]).item() for b in range(len(s))]
    assert len(set(one_by_one)) == len(s)
    assert loss(s, t).item() == pytest.approx(sum(one_by_one) / len(s), rel=1e-12)


@each_loss
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "values", [(0, 0), (0, 2), (2, 0), (2, 2), (2, -3), (1e-7, 0), (0, 1e-7), (1e-7, 2), (3e4, -3e4)]
)
def test_constant_inputs_give_nothing_infinite(
    loss: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, batch: int, values: tuple[float, float]
) -> None:
    s, t = (torch.full((batch, *shape[1:]), value, dtype=dtype, requires_grad=True) for value in values)
    value = loss(s, t)
    gradients = torch.autograd.grad(value, (s, t), allow_unused=True)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.shape == ()
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@each_loss
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scale", [1, 1000])  # the squares of the larger one leave float16's range
def test_half_precision_is_computed_in_float32(
    loss: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, scale: float
) -> None:
    s, t = scale * noise(*shape, seed=14, dtype=dtype), scale * noise(*shape, seed=15, dtype=dtype)
    value = loss(s.requires_grad_(), t)
    [gradient] = torch.autograd.grad(value, s)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(s.double(), t.double()).item(), rel=1e-5)
    assert gradient.isfinite().all()
    assert loss(s, t.double()).item() == pytest.approx(loss(s.double(), t.double()).item(), rel=1e-5)


@each_loss
def test_the_students_own_target_costs_nothing(loss: nn.Module, shape: tuple[int, ...]) -> None:
    t = noise(*shape, seed=16)
    if isinstance(loss, ActivationBoundary):
        t = t + t.sign()  # beyond the margin
    s = t.clone().requires_grad_()
    value = loss(s, t)
    [gradient] = torch.autograd.grad(value, s)
    assert value.item() == 0
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


@each_loss
@pytest.mark.parametrize("change", ["batch", "size", "axes", "empty"])
def test_other_shapes_are_refused(loss: nn.Module, shape: tuple[int, ...], change: str) -> None:
    s, t = noise(*shape, seed=17), noise(*shape, seed=18)
    s, t = {
        "batch": (s[:1], t),
        "size": (s[..., :1], t),
        "axes": (s[0, ..., 0], t[0, ..., 0]),
        "empty": (s[:0], t[:0]),
    }[change]
    if change == "axes" and isinstance(loss, Hint | ActivationBoundary):
        s, t = s[:, 0], t[:, 0]
    with pytest.raises(ValueError, match=r"needs? .*" + re.escape(str(tuple(s.shape)))):
        loss(s, t)


# ---- soft targets


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


# ---- hints


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (4, 2, 3, 5), (6, 10)])
def test_hint_equals_the_formula(shape: tuple[int, ...]) -> None:
    s, t = noise(*shape, seed=30), noise(*shape, seed=31)
    squares = 0.0
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        squares += (b - a) ** 2
    assert Hint()(s, t).item() == pytest.approx(squares / 2 / shape[0], rel=1e-12)
    assert Hint("element")(s, t).item() == pytest.approx(squares / math.prod(shape), rel=1e-12)


def test_hint_by_hand() -> None:
    s, t = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[4.0, 6.0], [1.0, 0.0]])
    assert Hint()(s, t).item() == (25 / 2 + 1 / 2) / 2
    assert Hint("element")(s, t).item() == (9 + 16 + 1) / 4


def test_unknown_reduction_of_hints_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 'sample' or 'element', not 'mean'"):
        Hint("mean")
