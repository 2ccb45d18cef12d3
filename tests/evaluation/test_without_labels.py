"""What is said without labels, against the formulas by hand and against labels that are drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netgraft.errors import RequestError, RunError
from netgraft.evaluation.without_labels import FLATTEST, TEMPERATURE, differences, estimated_gap


def agresti_min(first: float, second: float, images: int) -> tuple[float, float]:
    """Their interval as the article writes it, of a table with half an image more in each cell."""
    b, c, n = first + 0.5, second + 0.5, images + 2
    half = 1.959964 * np.sqrt(b + c - (b - c) ** 2 / n) / n
    return (b - c) / n - half, (b - c) / n + half


def test_the_estimate_is_the_formula() -> None:
    # both name class 0, then the student another one twice, once against a sure teacher
    teacher = np.log([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.97, 0.01, 0.02], [0.1, 0.8, 0.1]])
    student = np.log([[0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]])

    def alone(temperature: float) -> tuple[float, float]:
        p = np.exp(teacher / temperature)
        p /= p.sum(1, keepdims=True)
        return p[1, 0] + p[2, 0], p[1, 1] + p[2, 2]

    found = estimated_gap(torch.tensor(teacher), torch.tensor(student))
    first, second = alone(TEMPERATURE)
    assert found.middle == pytest.approx(100 * (first - second) / 4)
    assert found.low == pytest.approx(100 * agresti_min(*alone(FLATTEST), 4)[0])
    assert found.high == pytest.approx(100 * agresti_min(*alone(1.0), 4)[1])


def test_networks_that_agree_have_lost_nothing_as_far_as_few_images_can_tell() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    found = estimated_gap(logits, 3 * logits)
    assert found.middle == 0
    assert found.low < 0 < found.high
    # fewer images tell less
    assert estimated_gap(logits[:10], logits[:10]).high > found.high


def test_the_interval_holds_what_is_lost_where_labels_follow_the_teachers_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(300):
        teacher = 3 * torch.randn(200, 10, generator=generator)
        student = teacher + torch.randn(200, 10, generator=generator)
        labels = (teacher / TEMPERATURE).softmax(1).multinomial(1, generator=generator)[:, 0]
        right = [(logits.argmax(1) == labels).double().mean().item() for logits in (teacher, student)]
        found = estimated_gap(teacher, student)
        held += found.low <= 100 * (right[0] - right[1]) <= found.high
    assert held >= 0.95 * 300


def test_other_images_or_answers_that_are_none_are_refused() -> None:
    with pytest.raises(RequestError, match=r"got shapes \(4, 3\) and \(5, 3\)"):
        estimated_gap(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(RunError, match="got NaN"):
        estimated_gap(torch.zeros(4, 3), torch.full((4, 3), torch.nan))


def test_images_that_differ_most_come_first_and_no_others_come() -> None:
    teacher = torch.tensor([[9.0, 0.0], [0.4, 0.0], [3.0, 0.0], [0.0, 0.3]])
    student = torch.tensor([[0.1, 0.0], [0.0, 0.2], [0.0, 3.0], [0.0, 5.0]])
    found = differences(teacher, student, ["w.png", "x.png", "y.png", "z.png"], ["cat", "dog"])
    # w is answered alike, by networks that are farther apart than on x
    assert [row["image"] for row in found] == ["y.png", "x.png"]
    sure = np.exp(3) / (1 + np.exp(3))
    assert found[0] == {
        "image": "y.png",
        "position": 2,
        "teacher": "cat",
        "teacher_confidence": pytest.approx(sure, abs=1e-4),
        "student": "dog",
        "student_confidence": pytest.approx(sure, abs=1e-4),
        "distance": pytest.approx(2 * sure - 1, abs=1e-4),
    }
    many = differences(torch.tensor([[1.0, 0.0]] * 40), torch.tensor([[0.0, 1.0]] * 40), [*map(str, range(40))], "ab")
    assert [row["image"] for row in many] == [*map(str, range(12))]
