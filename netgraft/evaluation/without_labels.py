"""What the answers of two networks say without labels: how much accuracy was lost, and where they differ most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from netgraft.errors import RequestError
from netgraft.evaluation.metrics import answers

SHOWN = 12
"""Images that are named at most."""


TEMPERATURE = 1.35
"""What the teacher's logits are divided by. Without labels no temperature can be fitted; trained networks are usually
over-confident by factors from 1 to 2 (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017)."""

FLATTEST = 1.75
"""Temperature for the lower end of the interval; the upper end takes the teacher's confidence as it is."""

NORMAL = 1.959964
"""Standard deviations to either side that 95 % of a normal distribution lie within."""


@dataclass(frozen=True)
class EstimatedGap:
    """Top-1 of the teacher minus that of the student, in points, as far as it can be told without labels.

    Attributes:
        middle: Expected.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    middle: float
    low: float
    high: float


def estimated_gap(teacher_logits: Tensor, student_logits: Tensor) -> EstimatedGap:
    """Estimate how much less often a student is right than its teacher, from the answers of both alone.

    Where both answer alike, nothing is lost, whatever is right. Where they differ, the teacher's probabilities p, at a
    temperature, say how often each of them is right: the expected gap is the mean over all images of ``p[teacher's] -
    p[student's]``. The interval reaches from the highest temperature that is usual to the lowest. At each it is that of
    a difference of paired proportions (Agresti & Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24, 2005: half an image more in each of the four cells), with the expected
    numbers of images on which one alone is right in the place of counted ones.

    Args:
        teacher_logits: (N, K).
        student_logits: (N, K), of the same images.

    Raises:
        RequestError: The shapes differ.
        RunError: A logit is NaN.
    """
    if teacher_logits.shape != student_logits.shape:
        raise RequestError(
            f"expected logits of both networks for the same images and classes, got shapes "
            f"{tuple(teacher_logits.shape)} and {tuple(student_logits.shape)}; predict both with one loader"
        )
    named = [answers(logits) for logits in (teacher_logits, student_logits)]
    different = named[0] != named[1]

    def alone(temperature: float) -> tuple[float, float]:
        """Expected number of images on which the teacher, or the student, is right alone."""
        probabilities = (teacher_logits.double() / temperature).softmax(1)
        teachers, students = (float(probabilities.gather(1, each[:, None])[different].sum()) for each in named)
        return teachers, students

    images = len(teacher_logits)
    expected, most, least = (alone(temperature) for temperature in (TEMPERATURE, 1.0, FLATTEST))
    middle = 100 * (expected[0] - expected[1]) / images
    return EstimatedGap(middle, _interval(*least, images)[0], _interval(*most, images)[1])


def _interval(first: float, second: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a difference of paired proportions, in points.

    Args:
        first: Number of images that count for the first one alone.
        second: Likewise, for the second one.
        images: In all.
    """
    first, second, images = first + 0.5, second + 0.5, images + 2
    difference = (first - second) / images
    error = math.sqrt(((first + second) / images - difference**2) / images)
    return 100 * (difference - NORMAL * error), 100 * (difference + NORMAL * error)


def differences(
    teacher_logits: Tensor, student_logits: Tensor, images: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Name the images that two networks answer differently, those with the farthest probabilities first.

    The distance is the total variation: half of the sum over the classes of the differences of both probabilities.

    Args:
        teacher_logits: (N, K).
        student_logits: (N, K), of the same images.
        images: Name of each image.
        classes: Name of each class.

    Returns:
        Up to ``SHOWN`` images: ``image``, its ``position`` among them, ``teacher`` and ``student`` (classes),
        ``teacher_confidence`` and ``student_confidence`` (probabilities of these), ``distance`` from 0 to 1.
    """
    both = [logits.softmax(1) for logits in (teacher_logits, student_logits)]
    named = [answers(logits) for logits in (teacher_logits, student_logits)]
    distances = (both[0] - both[1]).abs().sum(1) / 2
    order = distances.argsort(descending=True, stable=True)
    different = [int(number) for number in order if named[0][number] != named[1][number]]
    return [
        {
            "image": images[number],
            "position": number,
            "teacher": classes[int(named[0][number])],
            "teacher_confidence": round(float(both[0][number].max()), 4),
            "student": classes[int(named[1][number])],
            "student_confidence": round(float(both[1][number].max()), 4),
            "distance": round(float(distances[number]), 4),
        }
        for number in different[:SHOWN]
    ]
