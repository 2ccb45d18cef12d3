"""What an objective sees of a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from netgraft.plan import StepOutputs
from tests.support.method_pairs import random

B, K = 4, 6

LABELS = [5, 0, 3, 3]


def test_labels_decide_where_there_are_any() -> None:
    teacher = random(B, K, seed=1)
    batch = StepOutputs(teacher, teacher, torch.tensor(LABELS))
    assert batch.classes.tolist() == LABELS
    assert replace(batch, labels=None).classes.tolist() == [int(np.argmax(row)) for row in teacher.numpy()]
