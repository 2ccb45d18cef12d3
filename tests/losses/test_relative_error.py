from __future__ import annotations

import numpy as np
import pytest
import torch

from netgraft.losses import RelativeError


def test_it_is_one_minus_the_coefficient_of_determination() -> None:
    student, teacher = torch.randn(3, 4, 5, 5, dtype=torch.float64), torch.randn(3, 4, 5, 5, dtype=torch.float64) + 2
    expected = np.mean((student.numpy() - teacher.numpy()) ** 2) / np.var(teacher.numpy())
    assert RelativeError()(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_the_teachers_mean_is_worth_one_and_the_teacher_nothing() -> None:
    teacher = torch.randn(2, 6)
    assert RelativeError()(torch.full_like(teacher, teacher.mean().item()), teacher).item() == pytest.approx(
        1, rel=1e-5
    )
    assert RelativeError()(teacher, teacher).item() == 0


def test_a_teacher_of_one_value_divides_by_nothing_smaller_than_epsilon() -> None:
    assert RelativeError(epsilon=0.5)(torch.ones(2, 3), torch.zeros(2, 3)).item() == 2


def test_half_precision_is_widened() -> None:
    assert RelativeError()(torch.ones(2, 3).bfloat16(), torch.randn(2, 3).bfloat16()).dtype == torch.float32
