"""Cross-entropy on classes, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netgraft.plan import StepOutputs
from tests.support.method_pairs import cross_entropy, objective_of, random, values

B, K = 4, 6

LABELS = [5, 0, 3, 3]


def test_supervised_is_cross_entropy_with_labels_or_the_teachers_arg_max() -> None:
    student, teacher = random(B, K), random(B, K, seed=1)
    predicted_classes = [int(np.argmax(row)) for row in teacher.numpy()]
    assert predicted_classes != LABELS
    for labels, classes in ((None, predicted_classes), (torch.tensor(LABELS), LABELS)):
        terms = values(objective_of("supervised")(StepOutputs(student, teacher, labels)))
        assert terms == {"supervised": pytest.approx(cross_entropy(student.numpy(), classes))}
