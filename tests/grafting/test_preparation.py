"""Two models are cut, paired and started as the options say."""

from __future__ import annotations

import pytest
import timm
import torch

from netgraft.errors import RequestError
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.preparation import cut_and_pair
from netgraft.modules import state_digest
from tests.support.method_pairs import SIDE, networks

SIZES = {"digits": (1, 8, 8), "families": (3, SIDE, SIDE)}


@pytest.mark.parametrize(
    ("pair", "init", "inherit", "started", "inherited"),
    [
        ("digits", "auto", "auto", "slice", 1),
        ("digits", "auto", "none", "slice", 0),
        ("digits", "slice", "auto", "slice", 1),
        ("digits", "random", "auto", "random", 1),
        ("digits", "random", "none", "random", 0),
        # no smaller twin: what may start with slices starts as it was built
        ("families", "auto", "auto", "random", 0),
        ("families", "random", "none", "random", 0),
    ],
)
def test_the_student_starts_as_the_options_say(
    pair: str, init: str, inherit: str, started: str, inherited: int
) -> None:
    teacher, student = networks(pair)
    built = state_digest(student)
    pairing = cut_and_pair(teacher, student, PairingOptions(init, inherit), input_size=SIZES[pair])
    assert (pairing.init, pairing.inherited) == (started, inherited)
    assert len(pairing.selections) == (len(pairing) - 1 if started == "slice" else 0)
    assert (state_digest(student) == built) == (started == "random" and not inherited)


def test_by_default_a_twin_inherits_and_starts_with_slices() -> None:
    pairing = cut_and_pair(*networks("digits"), input_size=SIZES["digits"])
    assert (pairing.init, pairing.inherited) == ("slice", 1)


def test_slices_are_refused_where_they_are_asked_for_and_can_not_be() -> None:
    with pytest.raises(RequestError, match="init='slice' needs a student that is built like the teacher"):
        cut_and_pair(*networks("families"), PairingOptions("slice"), input_size=SIZES["families"])


def test_models_of_different_classes_are_refused() -> None:
    teacher, _ = networks("digits")
    student = timm.create_model("digits_vgg7_bn_half", num_classes=7)
    with pytest.raises(RequestError, match="the teacher has 10 classes and the student 7; they must be the same"):
        cut_and_pair(teacher, student, input_size=SIZES["digits"])


def test_merged_blocks_are_the_whole_networks_and_inherit_too() -> None:
    images = torch.randn(2, 1, 8, 8)
    teacher, student = networks("digits")
    pairing = cut_and_pair(teacher, student, PairingOptions("random", "auto", 2), input_size=SIZES["digits"])
    assert len(pairing) == 2
    assert pairing.init == "random"
    # of one block more than is alike nothing is inherited
    assert pairing.inherited in (0, 1)
    with torch.no_grad():
        torch.testing.assert_close(pairing.teacher.eval()(images), teacher.eval()(images))
        torch.testing.assert_close(pairing.student.eval()(images), student.eval()(images))


def test_modes_and_random_numbers_stay_as_they_are() -> None:
    teacher, student = networks("digits")
    teacher.train()
    student.train()
    modes = [[module.training for module in model.modules()] for model in (teacher, student)]
    numbers, digest = torch.get_rng_state(), state_digest(teacher)
    cut_and_pair(teacher, student, PairingOptions("random", "none", 3), input_size=SIZES["digits"])
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [[module.training for module in model.modules()] for model in (teacher, student)] == modes
    assert state_digest(teacher) == digest
