"""Mean squared errors of logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netgraft.losses import LogitMSE


def test_equals_the_formula_and_its_slope() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(3, 5)), generator.normal(size=(3, 5))
    leaf = torch.from_numpy(student).requires_grad_()
    loss = LogitMSE()(leaf, torch.from_numpy(teacher))
    assert float(loss.detach()) == pytest.approx(sum((student - teacher).ravel() ** 2) / 15)
    loss.backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), 2 * (student - teacher) / 15)


@pytest.mark.parametrize("narrow", ["student", "teacher", "both"])
def test_half_precision_is_computed_in_float32(narrow: str) -> None:
    wide = {"student": torch.tensor([[300.0]]), "teacher": torch.tensor([[0.0]])}
    given = {name: value.half() if narrow in {name, "both"} else value for name, value in wide.items()}
    # 90,000 is beyond float16
    assert float(LogitMSE()(given["student"], given["teacher"])) == 90_000
