"""Teachers that say nothing are refused before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.data.sources import open_data
from netgraft.derivation import derive
from netgraft.distillation import prepare
from netgraft.errors import RequestError
from netgraft.evaluation.teacher_answers import check_answers
from netgraft.models.loading import load_teacher
from tests.support.cli import QUICK, fails

ALIKE = "the teacher answers every image alike"

NO_NUMBERS = "no (finite )?numbers"


def constant_head(model: nn.Module) -> None:
    """Answer with the biases of the last layer."""
    torch.nn.init.zeros_(model.get_parameter("head.fc.weight"))


def dead_body(model: nn.Module) -> None:
    """Answer with zeros in front of the last layer, whatever came in."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.constant_(module.bias, -1.0)


def no_numbers(model: nn.Module) -> None:
    torch.nn.init.constant_(model.get_parameter("head.fc.weight"), torch.nan)


def infinite(model: nn.Module) -> None:
    torch.nn.init.constant_(model.get_parameter("head.fc.bias"), torch.inf)


BROKEN: dict[Callable[[nn.Module], None], str] = {
    constant_head: ALIKE,
    dead_body: ALIKE,
    no_numbers: NO_NUMBERS,
    infinite: NO_NUMBERS,
}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return list(open_data("digits").train.load_many(range(20)))


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda each: each.__name__)
def test_it_is_named_as_what_it_is(breaks: Callable[[nn.Module], None], pictures: list[Image.Image]) -> None:
    teacher = copy.deepcopy(load_teacher("digits_vgg7_bn"))
    breaks(teacher)
    said = BROKEN[breaks]
    with pytest.raises(RequestError, match=said):
        prepare(teacher, timm.create_model("digits_vgg7_bn_half"), pictures)
    with pytest.raises(RequestError, match=said):
        derive(teacher, pictures)


@pytest.mark.parametrize("student", [["--student", "digits_vgg7_bn_half"], ["--keep", "macs=0.5"]])
@pytest.mark.parametrize("breaks", BROKEN, ids=lambda each: each.__name__)
def test_the_command_refuses_it_and_writes_nothing(
    breaks: Callable[[nn.Module], None],
    student: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = copy.deepcopy(load_teacher("digits_vgg7_bn"))
    breaks(teacher)
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    asked = [*QUICK, "--teacher", "digits_vgg7_bn", "--teacher-weights", "teacher.safetensors", *student]
    said = fails(capsys, *asked)
    assert ("alike" if BROKEN[breaks] == ALIKE else "numbers") in said
    assert said.count("\n") == 1


def test_images_that_are_all_alike_are_no_fault_of_the_teacher(pictures: list[Image.Image]) -> None:
    teacher = load_teacher("digits_vgg7_bn")
    config = resolve_model_data_config(teacher)
    check_answers(teacher, pictures[:1], config)
    check_answers(teacher, pictures[:1] * 5, config)
    # in training mode, the images of a batch would have a say in one another's answers
    teacher.train()
    check_answers(teacher, pictures[:1], config)
    assert teacher.training


def test_a_teacher_of_other_images_is_named(pictures: list[Image.Image]) -> None:
    config = resolve_model_data_config(load_teacher("digits_vgg7_bn"))
    with pytest.raises(RequestError, match=r"the teacher can't answer images of 1x8x8: .*; give the preprocessing"):
        check_answers(nn.Linear(7, 10), pictures, config)
