"""Answers of a teacher and a student to ten images, so that no two figures of them are equal.

Of ten images of three classes the teacher is right on seven (all but the last three) and the student on six (all but
the last four). On image 6 the student alone is wrong, on 7 and 8 both are wrong alike, on 9 each in its own way. So
they agree on eight, both are right on six, and the gap is one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

LABELS = (0, 1, 2, 0, 1, 2, 0, 1, 2, 0)
TEACHER = (0, 1, 2, 0, 1, 2, 0, 0, 1, 1)
STUDENT = (0, 1, 2, 0, 1, 2, 2, 0, 1, 2)
ENSEMBLE = (0, 1, 2, 0, 1, 0, 1, 0, 0, 1)
"""Classes that are named; the ensemble is right on the first five images."""

TEACHER_TOP1, STUDENT_TOP1, ENSEMBLE_TOP1, GAP, AGREEMENT = 70.0, 60.0, 50.0, 10.0, 80.0
"""Counted by hand, in percent and points."""

CONFIDENT = ((5.0, -2.0, 1.0), (-3.0, -0.5, -1.0), (0.0, 2.0, 9.0))
UNSURE = ((0.3, 0.2, 0.1), (0.2, 0.4, 0.3), (-1.2, -1.0, -0.9))
"""Logits that name class 0, 1 and 2."""


def logits(answers: tuple[int, ...], naming: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Logits (N, 3) that name the given classes."""
    return torch.tensor([naming[answer] for answer in answers])
