"""Suggested students are smaller, pair, and start as distill would start them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import register_model
from torch import nn

import netgraft
from netgraft.errors import RequestError
from netgraft.grafting import preparation
from netgraft.jobs.suggest import Size, Suggestions, suggest
from netgraft.models.creation import build_student, family, pretrained_cfg
from netgraft.splitting.chain import BlockChain
from netgraft.splitting.split import split
from tests.support.digit_words import save_teacher


@pytest.fixture(scope="module")
def for_digits() -> Suggestions:
    return suggest("digits_vgg7_bn")


def counted(model: nn.Module, size: tuple[int, ...]) -> Size:
    """Count a convolutional network's products one layer at a time."""
    macs = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Conv2d):
            macs += output[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            macs += layer.weight.numel()

    for layer in model.modules():
        layer.register_forward_hook(count)
    model.eval()(torch.zeros(1, *size))
    return Size(sum(each.numel() for each in model.parameters()), macs)


def test_sizes_are_those_of_the_models(for_digits: Suggestions) -> None:
    teacher = timm.create_model("digits_vgg7_bn")
    assert for_digits.input_size == (1, 8, 8)
    assert for_digits.size == counted(teacher, (1, 8, 8))
    assert len(for_digits.students) >= 2
    for each in for_digits.students:
        student = build_student(each.student, teacher=teacher, seed=0)
        assert each.size == counted(student, (1, 8, 8))
        assert each.size.parameters < for_digits.size.parameters
        assert each.size.macs < for_digits.size.macs


def test_starts_are_those_that_distill_makes(for_digits: Suggestions) -> None:
    teacher = netgraft.load_teacher("digits_vgg7_bn")
    images = netgraft.open_data("digits").train.load_many(range(20))
    starts = {}
    for each in for_digits.students:
        student = build_student(each.student, teacher=teacher, seed=0)
        prepared = netgraft.prepare(teacher, student, images, steps=10)
        starts[each.student] = prepared.pairing.init
        assert each.start == prepared.pairing.init
    assert starts["digits_vgg7_bn_half"] == "solve"
    assert "random" in starts.values()
    # what the teacher helps most with comes first
    assert for_digits.students[0].student == "digits_vgg7_bn_half"


def test_a_shallower_twin_starts_from_slices() -> None:
    found = suggest("cifar_resnet20", image_size=16, most=4)
    starts = {each.student: each.start for each in found.students}
    assert starts["cifar_resnet8"] == "slice"
    assert found.input_size == (3, 16, 16)
    assert len(found.students) <= 4


def test_students_have_as_many_classes_as_asked_for() -> None:
    found, usual = (suggest("digits_vgg7_bn", num_classes=count, most=1) for count in (3, None))
    assert found.classes == 3
    [few], [ten] = found.students, usual.students
    assert few.student == ten.student == "digits_vgg7_bn_half"
    width = timm.create_model("digits_vgg7_bn_half").state_dict()["head.fc.weight"].shape[1]
    assert ten.size.parameters - few.size.parameters == 7 * (width + 1)


def test_a_folder_is_a_teacher_like_its_name(tmp_path: Path, for_digits: Suggestions) -> None:
    found = suggest(str(save_teacher(tmp_path / "teacher")))
    assert found.students == for_digits.students


def test_the_teacher_is_cut_once_for_all_students(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[str] = []

    def counting(model: nn.Module, **options: Any) -> BlockChain:
        cut.append(str(pretrained_cfg(model)["architecture"]))
        return split(model, **options)

    monkeypatch.setattr(preparation, "split", counting)
    found = suggest("cifar_resnet20", image_size=16, most=4)
    assert len(found.students) > 1
    assert cut.count("cifar_resnet20") == 1
    assert {each.student for each in found.students} <= {*cut}
    assert len({*cut}) == len(cut) <= 4 + 1


def test_families() -> None:
    assert {"resnet18", "resnet50", "seresnet50"} <= set(family("resnet34"))
    assert "vgg16" not in family("resnet34")
    torchvision = family("torchvision:resnet34")
    assert {"torchvision:resnet18", "torchvision:wide_resnet50_2"} <= set(torchvision)
    assert "torchvision:vgg16" not in torchvision
    assert family("no_such_model") == []


def test_a_teacher_that_is_none_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match=r"did you mean .*resnet34"):
        suggest("resnet43")


class OnePiece(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 10
        self.weight = nn.Parameter(torch.randn(10, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) @ self.weight.T


@register_model
def one_piece(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A classifier that does everything in one module."""
    return OnePiece()


def test_a_teacher_that_can_not_be_cut_is_refused() -> None:
    with pytest.raises(RequestError, match="everything happens in one module; choose another model"):
        suggest("one_piece")


def test_images_that_a_teacher_can_not_take_are_refused() -> None:
    with pytest.raises(RequestError, match=r"VGG can't take images of 3x1x1 .*choose another model or image size"):
        suggest("cifar_vgg16_bn", image_size=1)
