"""Factor transfer against the article's formula, written as plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from netgraft.losses.factor_transfer import FactorTransfer
from tests.support.losses import noise

Array = NDArray[np.float64]


def distance_of_factors(student: Array, teacher: Array) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s_norm, t_norm = np.sqrt((s**2).sum()), np.sqrt((t**2).sum())
        for index in np.ndindex(s.shape):
            total += abs(t[index] / t_norm - s[index] / s_norm)
    return total


def test_factor_transfer_equals_the_formula_of_the_article() -> None:
    s, t = noise(4, 3, 2, 5, seed=12), 7 * noise(4, 3, 2, 5, seed=13)
    expected = distance_of_factors(s.numpy(), t.numpy())
    assert FactorTransfer()(s, t).item() == pytest.approx(expected / 4, rel=1e-13)
    assert FactorTransfer("element")(s, t).item() == pytest.approx(expected / (4 * 3 * 2 * 5), rel=1e-13)


def test_energies_are_repdistillers() -> None:
    # its factor(): normalize(f.pow(2).mean(1).view(B, -1)), compared by the mean of absolute differences
    s, t = noise(4, 3, 2, 5, seed=12), 7 * noise(4, 5, 2, 5, seed=13)[:, :3]
    total = 0.0
    for sample in range(4):
        rows = []
        for factors in (s, t):
            positions = [factors[sample, :, y, x].numpy() for y in range(2) for x in range(5)]
            energy = np.array([np.mean([channel**2 for channel in position]) for position in positions])
            rows.append(energy / np.sqrt(np.sum(energy**2)))
        total += float(np.abs(rows[0] - rows[1]).sum())
    assert FactorTransfer("element", "energy")(s, t).item() == pytest.approx(total / (4 * 2 * 5), rel=1e-12)
    signs = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert FactorTransfer("element", "energy")(s * signs, s).item() == 0


def test_factor_transfer_by_hand() -> None:
    s, t = torch.tensor([[6.0, 8.0], [0.0, 1.0]]).view(2, 2, 1, 1), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert FactorTransfer()(s, t.view(2, 2, 1, 1)).item() == pytest.approx((0.2 + 0.2) / 2)
    assert FactorTransfer("element")(s, t.view(2, 2, 1, 1)).item() == pytest.approx((0.2 + 0.2) / 4)


@pytest.mark.parametrize("reduction", ["sample", "element"])
def test_factor_transfer_compares_directions(reduction: str) -> None:
    loss, s, t = FactorTransfer(reduction), noise(3, 2, 2, 2, seed=14), noise(3, 2, 2, 2, seed=15)
    assert torch.autograd.gradcheck(loss, (s.clone().requires_grad_(), t.clone().requires_grad_()))
    scales = torch.tensor([0.1, 3, 50], dtype=torch.float64).view(3, 1, 1, 1)
    torch.testing.assert_close(loss(s * scales, t / scales), loss(s, t), rtol=1e-12, atol=0)
    assert loss(t.clone(), t).item() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FactorTransfer("mean"), "reduction must be 'sample' or 'element', not 'mean'"),
        (lambda: FactorTransfer(form="flat"), "form must be 'factor' or 'energy', not 'flat'"),
    ],
)
def test_wrong_hyperparameters_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_shapes_are_refused() -> None:
    small, large = torch.ones(2, 3, 2, 2), torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"factors of one shape \(B, m, H, W\), not \(2, 3, 2, 2\) and \(2, 3, 4, 4\)"):
        FactorTransfer()(small, large)
