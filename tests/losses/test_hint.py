"""Hints against their formula."""

from __future__ import annotations

import math

import pytest
import torch

from netgraft.losses.hint import Hint
from tests.support.losses import noise


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
