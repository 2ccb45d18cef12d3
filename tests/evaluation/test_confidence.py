"""What a student's confidence is worth, against counting image by image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from netgraft.errors import RunError
from netgraft.evaluation.confidence import EDGES, agreement_by_class, by_confidence, calibration_error


def drawn(images: int = 400, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(images, classes, generator=generator)
    student = teacher + 2 * torch.randn(images, classes, generator=generator)
    return student, teacher, torch.randint(0, classes, (images,), generator=generator)


def probabilities(logits: Tensor) -> np.ndarray[Any, Any]:
    exponentials = np.exp(logits.numpy().astype(float))
    return exponentials / exponentials.sum(1, keepdims=True)


def test_bins_hold_the_images_of_their_confidences() -> None:
    student, teacher, labels = drawn()
    p, q = probabilities(student), probabilities(teacher)
    rows = by_confidence(student, teacher, labels)
    assert sum(row["images"] for row in rows) == 400
    assert [row["low"] for row in rows] == sorted({row["low"] for row in rows})
    for row in rows:
        inside = [k for k in range(400) if row["low"] < p[k].max() <= row["high"]]
        assert row["images"] == len(inside) > 0
        assert row["confidence"] == pytest.approx(100 * np.mean([p[k].max() for k in inside]), abs=1e-3)
        same = [p[k].argmax() == q[k].argmax() for k in inside]
        assert row["agreement"] == pytest.approx(100 * np.mean(same), abs=1e-3)
        assert row["right"] == pytest.approx(100 * np.mean([p[k].argmax() == labels[k] for k in inside]), abs=1e-3)
    assert all("right" not in row for row in by_confidence(student, teacher))


def test_a_confidence_on_an_edge_belongs_below_and_certainty_is_in_the_last_bin() -> None:
    even, sure = torch.zeros(1, 2), torch.tensor([[1000.0, 0.0]])
    assert [(row["low"], row["high"]) for row in by_confidence(even, even)] == [(0.0, 0.5)]
    assert [(row["low"], row["high"]) for row in by_confidence(sure, sure)] == [(0.99, 1.0)]
    assert (EDGES[0], EDGES[-1]) == (0.0, 1.0)


def test_the_calibration_error_is_that_of_the_article() -> None:
    student, _, labels = drawn()
    p, error = probabilities(student), 0.0
    for number in range(15):
        inside = [k for k in range(400) if number / 15 < p[k].max() <= (number + 1) / 15]
        if inside:
            confidence = np.mean([p[k].max() for k in inside])
            accuracy = np.mean([p[k].argmax() == labels[k] for k in inside])
            error += len(inside) / 400 * abs(confidence - accuracy)
    assert calibration_error(student, labels) == pytest.approx(100 * error, abs=1e-6)


def test_who_says_how_often_it_is_right_has_no_error() -> None:
    # three of four are right, and it says so
    logits = torch.tensor([[math.log(3.0), 0.0]] * 4)
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.0, abs=1e-5)
    assert calibration_error(logits, torch.tensor([1, 1, 1, 1])) == pytest.approx(75.0, abs=1e-5)


def test_too_little_confidence_does_not_make_up_for_too_much() -> None:
    # half of the images are right and 75 % sure, the others wrong and 90 % sure
    logits = torch.tensor([[math.log(3.0), 0.0]] * 4 + [[math.log(9.0), 0.0]] * 4)
    labels = torch.tensor([0] * 4 + [1] * 4)
    assert calibration_error(logits, labels) == pytest.approx((25.0 + 90.0) / 2, abs=1e-5)


def test_agreement_is_counted_where_the_teacher_names_the_class() -> None:
    teacher = torch.eye(4)[[0, 0, 0, 2, 2, 0, 0, 0, 3]]
    student = torch.eye(4)[[0, 1, 0, 2, 2, 2, 0, 0, 1]]
    # cat differs twice of six times, fox once of once
    assert agreement_by_class(teacher, student, ["cat", "dog", "owl", "fox"]) == [
        {"name": "cat", "images": 6, "agreement": pytest.approx(66.6667)},
        {"name": "fox", "images": 1, "agreement": 0.0},
        {"name": "owl", "images": 2, "agreement": 100.0},
    ]
    assert len(agreement_by_class(torch.eye(300), torch.eye(300), [*map(str, range(300))])) == 100


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(RunError, match="got NaN"):
        by_confidence(torch.full((2, 2), torch.nan), torch.zeros(2, 2))
