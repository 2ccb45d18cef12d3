"""Widths of students that are built like their teacher, only narrower."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.narrowing import narrow
from netgraft.deriving.twins import widths_like
from netgraft.errors import RequestError
from tests.support.derivable import NETWORKS, Head, conv, images, network, randomised
from tests.support.random_models import build


@pytest.mark.parametrize("kind", NETWORKS)
def test_widths_are_read_off_a_narrowed_model(kind: str) -> None:
    teacher = network(kind)
    anatomy = Anatomy.of(teacher, images())
    widths = {place.atom: max(1, place.width - 1 - number) for number, place in enumerate(anatomy.places)}
    student = narrow(teacher, anatomy.found, {atom: torch.arange(width) for atom, width in widths.items()})

    found = widths_like(anatomy, student)
    assert {atom: found[atom] for atom in widths} == widths
    assert all(found[block.atom] == 1 for block in anatomy.blocks)


def test_blocks_that_the_student_has_not_are_told() -> None:
    teacher, student = build("cifar_resnet20"), build("cifar_resnet8")
    found = widths_like(Anatomy.of(teacher, images()), student)
    absent = [f"layer{stage}.{number}" for stage in (1, 2, 3) for number in (1, 2)]
    blocks = Anatomy.of(teacher, images()).blocks
    assert [block.name for block in blocks] == sorted([*absent, "layer1.0"])
    assert sorted(found.values())[: len(absent)] == [0] * len(absent)
    assert sum(width == 0 for width in found.values()) == len(absent)


def test_a_transformer_without_its_last_block_is_a_twin() -> None:
    options: dict[str, Any] = {"img_size": 32, "num_classes": 5, "embed_dim": 24, "num_heads": 3}
    teacher, student = (timm.create_model("vit_tiny_patch16_224", depth=depth, **options) for depth in (3, 2))
    anatomy = Anatomy.of(teacher, torch.randn(2, 3, 32, 32))
    found = widths_like(anatomy, student)
    absent = {block.name for block in anatomy.blocks if not found[block.atom]}
    assert absent == {"blocks.2.attn", "blocks.2.mlp"}


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
