"""Neuron selectivity against the article's formula, written as plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from netgraft.losses.neuron_selectivity import NeuronSelectivity
from tests.support.losses import KERNELS, noise

Array = NDArray[np.float64]


Kernel = Callable[[Array, Array], float]


def patterns(sample: Array) -> list[Array]:
    return [channel.ravel() / np.sqrt((channel**2).sum()) for channel in sample]


def variance_of(student: Array, teacher: Array) -> float:
    """The mean squared distance over all ordered pairs of the union of both sets."""
    union = patterns(student) + patterns(teacher)
    return sum(float(((x - y) ** 2).sum()) for x in union for y in union) / len(union) ** 2


def kernel_of(loss: NeuronSelectivity, variance: float) -> Kernel:
    if loss.kernel == "linear":
        return lambda x, y: float((x * y).sum())
    if loss.kernel == "polynomial":
        return lambda x, y: float(((x * y).sum() + loss.constant) ** loss.degree)
    return lambda x, y: float(np.exp(-((x - y) ** 2).sum() / (2 * variance)))


def discrepancy(student: Array, teacher: Array, kernel: Kernel) -> float:
    s, t = patterns(student), patterns(teacher)
    within_student = sum(kernel(x, y) for x in s for y in s) / len(s) ** 2
    within_teacher = sum(kernel(x, y) for x in t for y in t) / len(t) ** 2
    across = sum(kernel(x, y) for x in s for y in t) / (len(s) * len(t))
    return within_student + within_teacher - 2 * across


def selectivity(loss: NeuronSelectivity, student: Array, teacher: Array) -> float:
    pairs = list(zip(student, teacher, strict=True))
    return sum(discrepancy(s, t, kernel_of(loss, variance_of(s, t))) for s, t in pairs) / len(pairs)


@pytest.mark.parametrize("size", [(1, 2), (1, 3), (3, 4)])  # both fewer and more positions than channels
@pytest.mark.parametrize("name", KERNELS)
def test_selectivity_equals_the_formula_of_the_article(name: str, size: tuple[int, int]) -> None:
    s, t = noise(3, 4, *size, seed=0), 5 * noise(3, 6, *size, seed=1) + 1
    expected = selectivity(KERNELS[name], s.numpy(), t.numpy())
    assert expected > 1e-3
    assert KERNELS[name](s, t).item() == pytest.approx(expected, rel=1e-11)


def test_selectivity_of_two_sets_by_hand() -> None:
    # one pattern along the first of two positions, against two orthogonal ones of which the first is the same
    s, t = torch.tensor([3.0, 0.0]).view(1, 1, 1, 2), torch.tensor([[2.0, 0.0], [0.0, 7.0]]).view(1, 2, 1, 2)
    assert NeuronSelectivity("linear")(s, t).item() == pytest.approx(1 + 2 / 4 - 2 * 1 / 2)
    assert NeuronSelectivity()(s, t).item() == pytest.approx(1 + 2 / 4 - 2 * 1 / 2)
    # with constant 1, the same direction counts (1 + 1)^2 and the orthogonal one 1
    assert NeuronSelectivity(constant=1)(s, t).item() == pytest.approx(4 + (2 * 4 + 2 * 1) / 4 - 2 * (4 + 1) / 2)
    # orthogonal unit vectors are sqrt(2) apart: 4 of the 9 ordered pairs in the union
    unlike = np.exp(-2 / (2 * 8 / 9))
    expected = 1 + (2 + 2 * unlike) / 4 - 2 * (1 + unlike) / 2
    assert NeuronSelectivity("gaussian")(s, t).item() == pytest.approx(expected)


@pytest.mark.parametrize("size", [(1, 2), (3, 3)])
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "gaussian"])
def test_gradient_of_selectivity_by_finite_differences(name: str, size: tuple[int, int]) -> None:
    s, t = noise(2, 3, *size, seed=2).requires_grad_(), noise(2, 4, *size, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(KERNELS[name], (s, t))


def test_gradient_of_the_gaussian_kernel_takes_the_variance_as_a_constant() -> None:
    s, t = noise(1, 3, 1, 3, seed=4).requires_grad_(), noise(1, 2, 1, 3, seed=5).requires_grad_()
    base = [tensor.detach().numpy()[0] for tensor in (s, t)]
    kernel = kernel_of(NeuronSelectivity("gaussian"), variance_of(*base))
    gradients = torch.autograd.grad(NeuronSelectivity("gaussian")(s, t), (s, t))
    for side, gradient in enumerate(gradients):
        for index in np.ndindex(base[side].shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in base]
                moved[side][index] += step
                values.append(discrepancy(moved[0], moved[1], kernel))
            assert gradient[0][index].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_selectivity_is_one_of_sets_of_directions(name: str) -> None:
    loss, s, t = KERNELS[name], noise(2, 5, 3, 3, seed=6), noise(2, 7, 3, 3, seed=7)
    scales = torch.linspace(0.01, 100, 5, dtype=torch.float64)[:, None, None]
    changed = loss((s * scales)[:, [4, 2, 0, 1, 3]], t[:, [6, 5, 4, 3, 2, 1, 0]])
    torch.testing.assert_close(changed, loss(s, t), rtol=1e-11, atol=0)
    torch.testing.assert_close(loss(t, s), loss(s, t), rtol=1e-11, atol=0)


@pytest.mark.parametrize("size", [(1, 2), (3, 3)])
@pytest.mark.parametrize("name", KERNELS)
def test_selectivity_is_zero_for_equal_sets_even_if_one_holds_everything_twice(
    name: str, size: tuple[int, int]
) -> None:
    t = noise(2, 5, *size, seed=8)
    assert KERNELS[name](t.clone(), t).item() == pytest.approx(0, abs=1e-14)
    assert KERNELS[name](t.repeat(1, 2, 1, 1), t).item() == pytest.approx(0, abs=1e-14)
    # a set of other proportions is another one
    assert KERNELS[name](t[:, [0, 0, 1, 2, 3, 4]], t).item() > 1e-4


@pytest.mark.parametrize("name", KERNELS)
def test_equal_patterns_leave_no_rounding_noise_to_blow_up(name: str) -> None:
    s = noise(2, 1, 4, 4, seed=9, dtype=torch.float32).expand(2, 32, 4, 4).clone().requires_grad_()
    loss = KERNELS[name](s, (3 * s.detach())[:, :16])
    [gradient] = torch.autograd.grad(loss, s)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert gradient.abs().max() < 0.1


@pytest.mark.parametrize("kernel", ["linear", "polynomial", "gaussian"])
def test_a_dead_channel_gets_no_gradient(kernel: str) -> None:
    s, t = noise(1, 3, 2, 2, seed=10), noise(1, 3, 2, 2, seed=11)
    s[0, 1] = 0
    [gradient] = torch.autograd.grad(NeuronSelectivity(kernel)(s.requires_grad_(), t), s)
    assert (gradient[0, 1] == 0).all()
    assert (gradient[0, [0, 2]] != 0).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeuronSelectivity("rbf"), "kernel must be 'linear', 'polynomial' or 'gaussian', not 'rbf'"),
        (lambda: NeuronSelectivity(degree=0), "degree must be an integer of at least 1, not 0"),
        (lambda: NeuronSelectivity(constant=-1.0), "constant must be a finite number of at least 0, not -1.0"),
        (lambda: NeuronSelectivity(constant=float("inf")), "constant must be a finite number of at least 0, not inf"),
        (lambda: NeuronSelectivity(constant=float("nan")), "constant must be a finite number of at least 0, not nan"),
    ],
)
def test_wrong_hyperparameters_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_shapes_are_refused() -> None:
    small, large, flat = torch.ones(2, 3, 2, 2), torch.ones(2, 3, 4, 4), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"agree in B, H and W, not of shapes \(2, 3, 2, 2\) and \(2, 3, 4, 4\)"):
        NeuronSelectivity()(small, large)
    with pytest.raises(ValueError, match="maps"):
        NeuronSelectivity()(flat, flat)
    for one, other in ((small, flat), (flat, small)):
        with pytest.raises(ValueError, match="maps"):
            NeuronSelectivity()(one, other)
    with pytest.raises(ValueError, match="agree in B, H and W"):
        NeuronSelectivity()(small, torch.ones(2, 3, 4, 2))


def test_a_polynomial_of_degree_one_is_the_linear_kernel() -> None:
    student, teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 5, 4, 4, dtype=torch.float64)
    linear, polynomial = NeuronSelectivity("linear"), NeuronSelectivity("polynomial", degree=1)
    torch.testing.assert_close(polynomial(student, teacher), linear(student, teacher))
