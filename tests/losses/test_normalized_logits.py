from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from netgraft.losses import NormalizedLogits


def logits(batch: int, classes: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def article(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> float:
    """The sum over the batch of || s/||s|| - t/||t|| ||^2, image by image."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += float(((s / np.sqrt((s**2).sum()) - t / np.sqrt((t**2).sum())) ** 2).sum())
    return total


@pytest.mark.parametrize(("batch", "classes"), [(1, 10), (64, 10), (5, 100), (3, 2)])
def test_equals_the_formula_of_the_article(batch: int, classes: int) -> None:
    s, t = logits(batch, classes, 0), 5 * logits(batch, classes, 1)
    expected = article(s.numpy(), t.numpy())
    assert NormalizedLogits()(s, t).item() == pytest.approx(expected, rel=1e-13)
    assert NormalizedLogits(reduction="mean")(s, t).item() == pytest.approx(expected / batch, rel=1e-13)


def test_equals_two_minus_twice_the_cosine() -> None:
    s, t = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert NormalizedLogits()(s, t).item() == pytest.approx(2 - 2 * 24 / 25, rel=1e-6)
    assert NormalizedLogits()(s, -s).item() == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_by_finite_differences(reduction: str) -> None:
    s, t = logits(4, 6, 2).requires_grad_(), logits(4, 6, 3).requires_grad_()
    assert torch.autograd.gradcheck(NormalizedLogits(reduction=reduction), (s, t))


def test_only_directions_count() -> None:
    s, t = logits(8, 10, 4), logits(8, 10, 5)
    scales = torch.linspace(0.01, 100, 8, dtype=torch.float64)[:, None]
    loss = NormalizedLogits()
    torch.testing.assert_close(loss(s * scales, t / scales), loss(s, t), rtol=1e-12, atol=0)
    s.requires_grad_()
    [gradient] = torch.autograd.grad(loss(s, t), s)
    # no gradient along the logits themselves
    torch.testing.assert_close((gradient * s).sum(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)


def test_is_zero_for_the_teachers_own_logits() -> None:
    t = logits(8, 10, 6)
    assert NormalizedLogits()(t.clone(), t).item() == 0
    assert NormalizedLogits()(3 * t, t).item() == pytest.approx(0, abs=1e-28)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_logits_give_no_nan(dtype: torch.dtype) -> None:
    s = torch.zeros(2, 5, dtype=dtype, requires_grad=True)
    t = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=dtype)
    loss = NormalizedLogits()(s, t)
    [gradient] = torch.autograd.grad(loss, s)
    assert loss.item() == 1  # the length of the one teacher's logits that have a direction
    assert (gradient == 0).all()  # nothing says in which direction to go


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float32)])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, wide: torch.dtype) -> None:
    # a norm of 1e5 and a square of 1e-6 are both out of float16's range
    s, t = 300 * logits(8, 10000, 7, dtype), logits(8, 10000, 8, dtype) / 1000
    loss = NormalizedLogits()(s, t)
    assert loss.dtype == wide
    assert loss.item() == pytest.approx(article(s.double().numpy(), t.double().numpy()), rel=1e-5)
    assert NormalizedLogits()(logits(1, 3, 0), logits(1, 3, 1)).dtype == torch.float64


def test_mixed_precisions_are_compared() -> None:
    s, t = logits(4, 10, 9, torch.bfloat16), logits(4, 10, 10, torch.float32)
    expected = article(s.double().numpy(), t.double().numpy())
    assert NormalizedLogits()(s, t).item() == pytest.approx(expected, rel=1e-5)


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 'sum' or 'mean', not 'none'"):
        NormalizedLogits(reduction="none")


def test_logits_no_longer_than_eps_have_no_direction_on_either_side() -> None:
    short, long = torch.tensor([[0.3, 0.4]]), torch.tensor([[3.0, 4.0]])
    loss = NormalizedLogits(eps=1.0)
    assert float(loss(short, long)) == pytest.approx(1.0)
    assert float(loss(long, short)) == pytest.approx(1.0)
