"""Maps at the cuts beside the logits, for students that start with channels of the teacher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from netgraft.data.sources import open_data
from netgraft.distillation import prepare
from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.netgraft import NetGraft
from netgraft.models.loading import load_teacher
from netgraft.plan import Feature, Phase, StepOutputs

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def sliced() -> Pairing:
    teacher, student = load_teacher("digits_vgg7_bn"), timm.create_model("digits_vgg7_bn_half")
    return cut_and_pair(teacher, student, input_size=(1, 8, 8))


def seen(chain: nn.Sequential, feature: Feature) -> Tensor:
    with torch.no_grad():
        state = nn.Sequential(*list(chain)[: feature.block + 1]).eval()(IMAGES)
        return state if feature.connector is None else feature.connector(state)


def outputs(phase: Phase) -> StepOutputs:
    assert phase.teacher is not None
    with torch.no_grad():
        return StepOutputs(
            phase.model.eval()(IMAGES),
            phase.teacher.eval()(IMAGES),
            None,
            tuple(seen(phase.model, feature) for feature in phase.features),
            tuple(seen(phase.teacher, feature) for feature in phase.teacher_features),
        )


@pytest.mark.parametrize("adapters", ["frozen", "trained"])
def test_each_trained_block_is_compared_with_the_channels_that_it_has(adapters: str) -> None:
    pairing = sliced()
    method = NetGraft(block_steps=(0,), join_steps=5, joins="at-once", adapters=adapters, maps_weight=0.3)
    [phase] = method.plan(pairing).phases
    batch = outputs(phase)
    student, teacher = list(pairing.student), list(pairing.teacher)
    expected, state, teachers = 0.0, student[0].eval()(IMAGES), teacher[0].eval()(IMAGES)
    # the student's blocks one behind the other, without adapters, which only choose channels
    for number in (1, 2):
        state, teachers = student[number].eval()(state), teacher[number].eval()(teachers)
        wanted = teachers[:, pairing.selections[number]].detach().double().numpy()
        got = state.detach().double().numpy()
        expected += np.mean((got - wanted) ** 2) / np.var(wanted)
    logits = batch.target.double().numpy()  # type: ignore[union-attr]
    expected *= 0.3 * np.mean((logits - logits.mean(0)) ** 2)
    terms = phase.objective(batch)
    assert terms.keys() == {"logits", "maps"}
    assert terms["maps"].item() == pytest.approx(expected, rel=1e-4)


def test_a_block_alone_is_compared_where_it_ends() -> None:
    phases = NetGraft(block_steps=(5,), join_steps=0, maps_weight=1.0).plan(sliced()).phases
    counts = [len(phase.features) for phase in phases]
    assert counts == [1, 1, 0]  # the last block gives logits
    for phase in phases[:2]:
        batch = outputs(phase)
        assert [feature.shape for feature in batch.features] == [feature.shape for feature in batch.teacher_features]


def test_without_a_weight_or_channels_of_the_teacher_there_are_none() -> None:
    pairing = sliced()
    for method, made in ((NetGraft(), pairing), (NetGraft(maps_weight=1.0), replace(pairing, selections=()))):
        assert not any(phase.features or phase.teacher_features for phase in method.plan(made).phases)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(RequestError, match="maps_weight can't be negative"):
        NetGraft(maps_weight=-0.1)


def test_a_start_in_closed_form_is_trained_at_once_on_maps_by_default() -> None:
    teacher, student = load_teacher("digits_vgg7_bn"), timm.create_model("digits_vgg7_bn_half")
    images = open_data("digits").train.load_many(range(10))
    [phase] = prepare(teacher, student, images, init="solve").plan.phases
    assert phase.features
    assert not phase.adapters
