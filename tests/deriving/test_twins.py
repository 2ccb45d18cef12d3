"""Widths of students that are built like their teacher, only narrower."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.narrowing import narrow
from netgraft.deriving.twins import widths_like
from netgraft.errors import RequestError
from tests.support.derivable import NETWORKS, Head, conv, images, network, randomised


@pytest.mark.parametrize("kind", NETWORKS)
def test_widths_are_read_off_a_narrowed_model(kind: str) -> None:
    teacher = network(kind)
    anatomy = Anatomy.of(teacher, images())
    widths = {place.atom: max(1, place.width - 1 - number) for number, place in enumerate(anatomy.places)}
    student = narrow(teacher, anatomy.found, {atom: torch.arange(width) for atom, width in widths.items()})

    assert widths_like(anatomy, student) == widths


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        (nn.Sequential(conv(3, 8), conv(8, 24), Head(24)), "1.0.weight is "),
        (nn.Sequential(conv(3, 8), conv(8, 12, 5), Head(12)), "1.0.weight is "),
        (nn.Sequential(conv(3, 8), Head(8)), "1.0.weight is in one of them alone"),
        (nn.Sequential(conv(3, 8), conv(8, 12, groups=2), Head(12)), "1.0.weight is "),
    ],
)
def test_other_students_are_refused_in_a_sentence(student: nn.Module, reason: str) -> None:
    anatomy = Anatomy.of(network("plain"), images())

    with pytest.raises(RequestError, match=r"^init='solve' needs a student that is built like the teacher") as caught:
        widths_like(anatomy, student)
    assert "\n" not in str(caught.value)
    assert reason in str(caught.value) or "in one of them alone" in str(caught.value)


def test_weights_of_other_dimensions_are_refused_in_a_sentence() -> None:
    teacher = randomised(nn.Sequential(conv(3, 8), nn.Conv2d(8, 8, 1), Head(8)))
    student = nn.Sequential(conv(3, 8), nn.Linear(8, 8), Head(8))

    with pytest.raises(RequestError, match=r"1\.weight has 2 dimensions, not 4"):
        widths_like(Anatomy.of(teacher, images()), student)
