"""Activation boundaries, by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from netgraft.distillation import Distillation
from netgraft.errors import InterruptedRunError, RequestError
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.connectors import BoundaryConnector
from netgraft.methods.registry import AB
from netgraft.modules import state_digest
from netgraft.plan import StepOutputs
from netgraft.training.step import StepModule
from tests.support.method_pairs import method, networks, one_cut, pairing, prepare_run, values, with_observer
from tests.support.random_models import randomise


def test_boundaries_by_hand() -> None:
    # margin 2; teacher on, off, on, off; distances to the right side 2 - 3 -> 0, 2 + 1 = 3, 2 - (-1) = 3, 2 - 3 -> 0
    teacher = torch.tensor([[1.0, 0.0, 5.0, 0.0]] * 2, dtype=torch.float64)
    student = torch.tensor([[3.0, 1.0, -1.0, -3.0], [3.0, -3.0, 3.0, -3.0]], dtype=torch.float64)
    [phase] = method("ab", ab_margin=2.0).objective(pairing()).before
    two = StepOutputs(student, teacher, None, (student, 0 * student[:, :2]), (teacher, teacher[:, :2]))
    # the means over 4 neurons of 0, 9, 9, 0, and of a sample that costs nothing; at 0 it is 2 short of either side
    assert list(values(phase.objective(two)).values()) == pytest.approx([(18 / 4 + 0) / 2, 4.0])


def test_the_students_boundaries_have_both_sides_and_the_teachers_width() -> None:
    seen: list[StepOutputs] = []
    prepared = prepare_run("digits", method("ab", ab_steps=1, steps=0, batch_size=4))
    [phase] = prepared.plan.phases
    assert [feature.block for feature in phase.features] == [1, 2]
    assert all(isinstance(feature.connector, BoundaryConnector) for feature in phase.features)
    with_observer(prepared, lambda number, batch: seen.append(batch)).run()
    for student, teacher, wide in zip(seen[0].features, seen[0].teacher_features, (64, 128), strict=True):
        assert student.shape == teacher.shape
        assert student.shape[1] == wide
        assert 0.2 < float((student > 0).float().mean()) < 0.8
        # a teacher's response behind a ReLU is zero or on
        assert float(teacher.min()) == 0
        assert float(teacher.max()) > 0


def test_boundaries_are_learned_without_logits() -> None:
    [phase] = AB().objective(pairing()).before
    assert phase.teacher is not None
    assert len(phase.teacher) == len(phase.model) == 3


REPDISTILLER = {"ab_responses": "pre-activation", "ab_reduction": "doubling"}


def entering(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """What a module of a network takes in, by a hook."""
    seen: list[Tensor] = []
    # copied: a ReLU may work in place
    handle = network.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    with torch.no_grad():
        network(images)
    handle.remove()
    return seen[0]


def residual(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise(timm.create_model(name, num_classes=7), seed).eval()


def twins(pair: str) -> tuple[nn.Module, nn.Module, tuple[int, int, int]]:
    """Two networks of the same widths, and the size of their images."""
    if pair == "digits":
        return networks("digits")[0], timm.create_model("digits_vgg7_bn"), (1, 8, 8)
    return residual("cifar_resnet20", 0), residual("cifar_resnet8", 1), (3, 32, 32)


@pytest.mark.parametrize(
    ("pair", "names", "maps"),
    [
        ("digits", ("features.12", "features.19"), [(64, 4, 4), (128, 2, 2)]),
        ("residual", ("layer1.{}.act2", "layer2.{}.act2", "layer3.{}.act2"), [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
    ],
)
def test_pre_activations_are_what_enters_the_last_relu_of_each_block_but_the_first(
    pair: str, names: tuple[str, ...], maps: list[tuple[int, ...]]
) -> None:
    teacher, student, size = twins(pair)
    paired = cut_and_pair(teacher, student, PairingOptions("random", "none"), input_size=size)
    chosen = method("ab", ab_steps=1, steps=0, batch_size=4, **REPDISTILLER)
    plan = chosen.plan(paired)
    [phase] = plan.phases
    # where widths are equal there is nothing to connect
    assert [feature.connector for feature in phase.features] == [None] * len(names)
    assert phase.adapters == ()
    images = torch.randn(4, *size, generator=torch.Generator().manual_seed(0))
    expected = [entering(teacher, name.format(2), images) for name in names]
    # the student's statistics are the batch's
    own = [entering(copy.deepcopy(student).train(), name.format(0), images) for name in names]

    seen: list[StepOutputs] = []

    def observed(batch: StepOutputs) -> Mapping[str, Tensor]:
        seen.append(batch)
        return phase.objective(batch)

    student.train()
    step = StepModule(replace(phase, objective=observed), {}, nullcontext)
    outputs = {blocks: nn.Sequential(*blocks)(images.clone()).detach() for blocks in step.frozen.all()}
    terms = step(step.frozen.inputs(outputs, None))
    for found, hooked, shape in zip(seen[0].teacher_features, expected, maps, strict=True):
        assert tuple(found.shape[1:]) == shape
        assert torch.equal(found, hooked)
        assert 0.01 < float((found < 0).float().mean()) < 0.95
    for found, hooked in zip(seen[0].features, own, strict=True):
        assert torch.equal(found, hooked)
        assert float(found.detach().min()) < 0
    # every layer in front learns, the last of them too
    sum(terms.values(), torch.zeros(())).backward()
    for weight in phase.trainable.parameters():
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) > 0


def test_where_widths_differ_connectors_stand_behind_pre_activations() -> None:
    seen: list[StepOutputs] = []
    prepared = prepare_run("digits", method("ab", ab_steps=1, steps=0, batch_size=4, **REPDISTILLER))
    [phase] = prepared.plan.phases
    assert all(isinstance(feature.connector, BoundaryConnector) for feature in phase.features)
    # the inherited block stays whole, the last one ends where it is compared
    assert (
        [feature.block for feature in phase.features] == [1, 3] == [feature.block for feature in phase.teacher_features]
    )
    assert len(phase.model) == len(phase.teacher or ()) == 4
    with_observer(prepared, lambda number, batch: seen.append(batch)).run()
    for student, teacher, shape in zip(
        seen[0].features, seen[0].teacher_features, [(4, 64, 4, 4), (4, 128, 2, 2)], strict=True
    ):
        assert student.shape == teacher.shape == shape


def digest(prepared: Distillation, **options: Any) -> str:
    return state_digest(prepared.run(**options).student)


def test_pre_activations_are_cached_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    def run() -> Distillation:
        return prepare_run("digits", method("ab", ab_steps=6, steps=6, batch_size=4, ce_weight=1.0, **REPDISTILLER))

    expected = digest(run())
    recomputed = replace(run(), runner=replace(run().runner, cache_gib=0.0))
    assert digest(recomputed) == expected
    asked = iter([False] * 3 + [True])
    with pytest.raises(InterruptedRunError, match="phase 1"):
        run().run(folder=tmp_path, stop=partial(next, asked))
    asked = iter([False] * 6 + [True])
    with pytest.raises(InterruptedRunError, match="phase 2"):
        run().run(folder=tmp_path, resume=True, stop=partial(next, asked))
    assert digest(run(), folder=tmp_path, resume=True) == expected


def test_blocks_that_end_in_no_activation_are_refused() -> None:
    with pytest.raises(RequestError, match="InvertedResidual doesn't end in an activation"):
        prepare_run("families", method("ab", **REPDISTILLER))


def test_other_pooling_behind_the_activations_is_refused() -> None:
    student = timm.create_model("digits_vgg7_bn_half")
    student.get_submodule("features").add_module("13", nn.AvgPool2d(2))
    teacher, _ = networks("digits")
    paired = cut_and_pair(teacher, student, PairingOptions("random", "none"), input_size=(1, 8, 8))
    with pytest.raises(RequestError, match=r"block 2 ends in 64x2x2 and 32x2x2, behind MaxPool2d.* and AvgPool2d"):
        method("ab", **REPDISTILLER).plan(paired)


def test_a_single_block_in_front_of_the_head_has_no_pre_activations() -> None:
    with pytest.raises(RequestError, match="no trained block lies between"):
        method("ab", **REPDISTILLER).plan(one_cut())


@pytest.mark.parametrize("name", ["ab_responses", "ab_reduction"])
def test_other_choices_are_refused(name: str) -> None:
    wrong: dict[str, Any] = {name: "hook"}
    with pytest.raises(RequestError, match=f"{name} must be one of"):
        AB(**wrong)
