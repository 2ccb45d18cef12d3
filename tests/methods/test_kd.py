"""Knowledge distillation, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netgraft.errors import RequestError
from netgraft.plan import StepOutputs
from tests.support.method_pairs import cross_entropy, divergence, method, objective_of, prepare_run, random, values

B, K = 4, 6

LABELS = [5, 0, 3, 3]


def test_kd_with_and_without_labels() -> None:
    student, teacher = random(B, K), random(B, K, seed=1)
    soft = divergence(teacher.numpy(), student.numpy(), 4.0)
    hard = cross_entropy(student.numpy(), LABELS)
    terms = values(objective_of("kd")(StepOutputs(student, teacher, None)))
    assert terms == {"kd": pytest.approx(soft)}
    terms = values(objective_of("kd")(StepOutputs(student, teacher, torch.tensor(LABELS))))
    assert terms == {"kd": pytest.approx(0.9 * soft), "classes": pytest.approx(0.1 * hard)}
    # without soft targets the teacher's arg-max stands for labels
    predicted_classes = [int(np.argmax(row)) for row in teacher.numpy()]
    terms = values(objective_of("kd", kd_weight=0, ce_weight=2)(StepOutputs(student, teacher, None)))
    assert terms == {"classes": pytest.approx(2 * cross_entropy(student.numpy(), predicted_classes))}


def test_without_a_term_there_is_nothing_to_learn() -> None:
    prepared = prepare_run("digits", method("kd", kd_weight=0, ce_weight=0, steps=1, batch_size=4))
    with pytest.raises(RequestError, match="every term of the loss has weight 0"):
        prepared.run()
