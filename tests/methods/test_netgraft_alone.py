"""Blocks of a student that was solved, each trained alone on the teacher's own outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from netgraft.data.sources import open_data
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.derivation import Derivation, Deriver
from netgraft.deriving.budget import budget_of
from netgraft.deriving.options import DerivingOptions
from netgraft.distillation import Distillation, prepare
from netgraft.errors import InterruptedRunError, RequestError
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.netgraft import NetGraft
from netgraft.models.loading import load_teacher
from netgraft.modules import state_digest
from netgraft.plan import Phase, StepOutputs
from netgraft.training.parallel import independent_groups
from netgraft.training.runner import Runner

ALONE = NetGraft(block_steps=(3,), join_steps=0)


def photographs(first: int = 0) -> list[Image.Image]:
    return list(open_data("digits").train.load_many(range(first, first + 12)))


def views_for(teacher: nn.Module, first: int = 0) -> Views:
    return Views.configured(photographs(first), VIEW_POLICIES["plain"], resolve_model_data_config(teacher), seed=0)


PROBE = views_for(load_teacher("digits_vgg7_bn")).batch(range(12))
"""Real digits: on noise channels answer that are silent on digits."""

OTHERS = views_for(load_teacher("digits_vgg7_bn"), 100).batch(range(12))
"""That nothing was solved on."""


@cache
def derived() -> Derivation:
    """Two fifths of the operations."""
    teacher = load_teacher("digits_vgg7_bn")
    return Deriver(teacher, views_for(teacher), resolve_model_data_config(teacher)).derive(budget_of({"macs": 0.4}))


def prepared(method: NetGraft = ALONE, start: Derivation | None = None) -> Distillation:
    """Return what trains a student from its start."""
    start = start or derived()
    start = replace(start, student=copy.deepcopy(start.student))
    teacher, runner = start.anatomy.model, Runner(accelerator="cpu", precision="32")
    views = views_for(teacher)
    return prepare(teacher, start.student, photographs(), method=method, views=views, runner=runner, derivation=start)


@torch.no_grad()
def terms(phase: Phase, images: Tensor = PROBE) -> dict[str, float]:
    assert phase.teacher is not None
    outputs = StepOutputs(phase.model.eval()(images), phase.teacher.eval()(images), None)
    return {name: float(value) for name, value in phase.objective(outputs).items()}


@torch.no_grad()
def test_channels_that_are_always_zero_leave_nothing_to_learn_when_they_are_gone() -> None:
    # which of the teacher's channels a block takes in and gives must be right at each cut for the terms to be zero
    teacher, twin = load_teacher("digits_vgg7_bn"), timm.create_model("digits_vgg7_bn_half")
    generator = torch.Generator().manual_seed(0)
    norms = [[m for m in model.modules() if isinstance(m, nn.BatchNorm2d)] for model in (teacher, twin)]
    for wide, narrow in zip(*norms, strict=True):
        dead = torch.randperm(wide.num_features, generator=generator)[narrow.num_features :]
        wide.weight[dead], wide.bias[dead] = 0.0, 0.0
    whole = DerivingOptions(convolutions="whole")
    tool = Deriver(teacher, views_for(teacher), resolve_model_data_config(teacher), options=whole)
    phases = prepared(start=tool.like(twin)).plan.phases
    assert [phase.name for phase in phases] == ["graft block 2", "graft block 3", "graft block 4"]
    variance = float(teacher(PROBE).var())
    assert [list(terms(phase)) for phase in phases] == [["outputs"], ["outputs"], ["logits"]]
    for phase in phases:
        assert sum(terms(phase).values()) < 1e-6 * max(variance, 1.0)


@torch.no_grad()
def test_a_block_takes_in_the_teacher_s_channels_and_is_compared_with_them() -> None:
    ready = prepared()
    assert ready.derivation is not None
    kept = {name: np.array(channels) for name, channels in ready.derivation.kept_names().items()}
    teacher, student = load_teacher("digits_vgg7_bn").features, ready.model.features
    assert isinstance(teacher, nn.Sequential)
    assert isinstance(student, nn.Sequential)
    # the convolutions that write what crosses the cuts, and where these are: behind the pooling
    cuts = {"features.3": 7, "features.10": 14, "features.17": 21}
    phases = ready.plan.phases[-3:-1]
    starts = list(cuts.values())[:-1]
    for phase, start, (written, end), before in zip(phases, starts, [*cuts.items()][1:], cuts, strict=False):
        entering = teacher[:start](OTHERS)
        entering = entering[:, kept[before]] if before in kept else entering
        wanted = teacher[:end](OTHERS).double().numpy()
        wanted = wanted[:, kept[written]] if written in kept else wanted
        got = student[start:end](entering).double().numpy()
        expected = np.mean((got - wanted) ** 2) / np.var(wanted)
        assert terms(phase, OTHERS)["outputs"] == pytest.approx(expected, rel=1e-4)
        assert expected > 1e-4


def test_blocks_alone_see_nothing_of_one_another_and_nothing_behind_them_runs() -> None:
    ready = prepared()
    phases = ready.plan.phases
    assert list(independent_groups(phases)) == [range(len(phases))]
    teacher = ready.pairing.teacher.blocks()
    for number, phase in enumerate(phases, ready.pairing.inherited):
        assert not set(teacher[number:]) & set(phase.model)
        assert set(phase.trainable.parameters()) == set(ready.pairing.student[number].parameters())


def test_training_them_brings_each_nearer_to_the_teacher(tmp_path: Path) -> None:
    ready = prepared(replace(ALONE, block_steps=(60,)))
    before = [sum(terms(phase).values()) for phase in ready.plan.phases]
    ready.train(folder=tmp_path)
    after = [sum(terms(phase).values()) for phase in ready.plan.phases]
    assert all(less < more for less, more in zip(after, before, strict=True) if more > 1e-3)
    assert any(more > 1e-3 for more in before)


def after_steps(count: int) -> Callable[[], bool]:
    """Says yes when it is asked for the last time."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None


@pytest.mark.parametrize("steps", [2, 5])  # within the first block, and within the second
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, steps: int) -> None:
    method = replace(ALONE, join_steps=2, joins="at-once")
    whole = prepared(method).run()
    with pytest.raises(InterruptedRunError):
        prepared(method).run(folder=tmp_path, stop=after_steps(steps))
    again = prepared(method).run(folder=tmp_path, resume=True)
    assert state_digest(again.student) == state_digest(whole.student)


def test_slices_are_compared_on_logits_unless_outputs_are_asked_for() -> None:
    def planned(method: NetGraft, **options: str) -> tuple[Phase, ...]:
        teacher, student = load_teacher("digits_vgg7_bn"), timm.create_model("digits_vgg7_bn_half")
        return prepare(teacher, student, photographs(), method=method, **options).plan.phases  # type: ignore[arg-type]

    for method, ends in ((ALONE, (12, 10)), (replace(ALONE, block_targets="outputs"), (12, 32, 2, 2))):
        [first, *_] = planned(method, init="slice")
        assert first.model.eval()(PROBE).shape == ends
    [first, *_] = prepared(replace(ALONE, block_targets="logits")).plan.phases
    assert first.model.eval()(PROBE).shape == (12, 10)


def test_outputs_of_a_student_that_shares_no_channels_are_refused() -> None:
    teacher, student = load_teacher("digits_vgg7_bn"), timm.create_model("digits_vgg7_bn_half")
    said = "block_targets outputs compares channels that student and teacher share, and a student of init 'random'"
    with pytest.raises(RequestError, match=said):
        prepare(teacher, student, photographs(), init="random", method=replace(ALONE, block_targets="outputs"))
    with pytest.raises(RequestError, match="block_targets must be one of auto, logits, outputs, not 'maps'"):
        NetGraft(block_targets="maps")
    # what the article asks of it stays
    pairing = cut_and_pair(teacher, student, input_size=(1, 8, 8))
    assert NetGraft(block_steps=(1,)).plan(replace(pairing, init="random", selections=())).phases
