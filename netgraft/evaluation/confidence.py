"""How far a student's confidence can be trusted, from the answers of both networks, and by class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from netgraft.evaluation.metrics import answers

EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Of the bins that confidences are sorted into: each holds its upper edge."""

BINS = 15
"""Of equal width, for the calibration error, as in the article."""

MOST_CLASSES = 100
"""Rows of agreement by class."""


def by_confidence(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None) -> list[dict[str, Any]]:
    """Sort images by the student's confidence, the largest probability of its softmax.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K), of the same images.
        labels: Right classes (N,), where they are known.

    Returns:
        Of each bin that holds images, the least confident first: ``low`` and ``high`` (edges), ``images``,
        ``confidence`` (mean, in percent), ``agreement`` with the teacher in percent, and with labels ``right`` in
        percent.

    Raises:
        RequestError: The logits have another shape.
        RunError: A logit is NaN.
    """
    named = answers(student_logits)
    confidences = student_logits.double().softmax(1).amax(1)
    agree = named == answers(teacher_logits)
    right = None if labels is None else named == labels
    rows: list[dict[str, Any]] = []
    for low, high in pairwise(EDGES):
        inside = (confidences > low) & (confidences <= high)
        if not inside.any():
            continue
        row = {
            "low": low,
            "high": high,
            "images": int(inside.sum()),
            "confidence": _percent(confidences[inside]),
            "agreement": _percent(agree[inside]),
        }
        rows.append(row if right is None else {**row, "right": _percent(right[inside])})
    return rows


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Return by how many points confidence and accuracy differ: the expected calibration error.

    Images are sorted into 15 bins of equal width by confidence; it is the mean over the images of the absolute
    difference between the bin's mean confidence and its accuracy (Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017).

    Args:
        logits: (N, K).
        labels: Right classes (N,).

    Raises:
        RequestError: The logits have another shape.
        RunError: A logit is NaN.
    """
    right = (answers(logits) == labels).double()
    confidences = logits.double().softmax(1).amax(1)
    bins = (confidences * BINS).ceil().clamp(1, BINS).long() - 1
    differences = torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, confidences - right)
    return float(100 * differences.abs().sum() / len(right))


def agreement_by_class(teacher_logits: Tensor, student_logits: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Say for each class how often the student gives the teacher's answer where that is this class.

    Args:
        teacher_logits: (N, K).
        student_logits: (N, K), of the same images.
        classes: Name of each class.

    Returns:
        ``name`` of the class, ``images`` that the teacher takes for it, and ``agreement`` in percent; those first in
        which most images are answered differently, of at most ``MOST_CLASSES`` classes, none without images.
    """
    named = answers(teacher_logits)
    agree = named == answers(student_logits)

    def differing(number: int) -> tuple[int, float]:
        of_class = agree[named == number]
        return -int((~of_class).sum()), _percent(of_class)

    return [
        {
            "name": classes[number],
            "images": int((named == number).sum()),
            "agreement": _percent(agree[named == number]),
        }
        for number in sorted(named.unique().tolist(), key=differing)[:MOST_CLASSES]
    ]


def _percent(values: Tensor) -> float:
    return round(100 * float(values.double().mean()), 4)
