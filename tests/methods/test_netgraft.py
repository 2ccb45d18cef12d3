"""The method: its plan, its published settings, its loss, and that it trains pairs of any family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.errors import RequestError
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.method import Budget
from netgraft.methods.registry import NetGraft, choose
from netgraft.models.creation import build_student, load_teacher
from netgraft.plan import StepOutputs
from netgraft.progress import SilentReporter
from netgraft.training.runner import Runner


def digits_pairing(inherit: str = "auto", init: str = "random") -> Pairing:
    """Four blocks; the first is the same in both models."""
    teacher = load_teacher("digits_vgg7_bn")
    student = build_student("digits_vgg7_bn_half", teacher=teacher, seed=0)
    return cut_and_pair(teacher, student, PairingOptions(init, inherit), input_size=(1, 8, 8))


def weights(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


# --- the plan


@pytest.mark.parametrize(("inherit", "first"), [("auto", 1), ("none", 0)])
def test_each_block_alone_then_joins_of_growing_length(inherit: str, first: int) -> None:
    pairing = digits_pairing(inherit)
    plan = NetGraft(block_steps=(3,), join_steps=4).plan(pairing)
    assert pairing.inherited == first
    # (from, to) of what replaces the teacher's blocks: 4 blocks, of which `first` are inherited
    spans = [(k, k + 1) for k in range(first, 4)] + [(first, k) for k in range(first + 2, 5)]
    assert len(plan.phases) == len(spans)
    assert plan.steps == 3 * (4 - first) + 4 * (3 - first)
    teacher, student = pairing.teacher.blocks(), pairing.student.blocks()
    for phase, (start, stop) in zip(plan.phases, spans, strict=True):
        blocks = list(phase.model)
        assert blocks[start] is phase.trainable
        assert len(blocks) == 4 - (stop - start) + 1
        outside = [*teacher[:start], *teacher[stop:]]
        assert all(
            block is expected for block, expected in zip(blocks[:start] + blocks[start + 1 :], outside, strict=True)
        )
        assert weights(phase.trainable).isdisjoint(weights(pairing.teacher))
        assert [layer for layer in phase.trainable.children() if layer in student] == student[start:stop]
        assert phase.teacher is pairing.teacher


@pytest.mark.parametrize(("inherit", "first"), [("auto", 1), ("none", 0)])
def test_after_the_last_join_only_inherited_blocks_are_the_teachers(inherit: str, first: int) -> None:
    pairing = digits_pairing(inherit)
    plan = NetGraft().plan(pairing)
    last = plan.phases[-1]
    own = [block for block in last.model if block in pairing.teacher.blocks()]
    assert own == pairing.teacher.blocks()[:first]
    # what is deployed has the student's copies of them instead, and the very layers that were trained
    assert weights(plan.student).isdisjoint(weights(pairing.teacher))
    assert [*plan.student][first:] == [*last.trainable.children()]
    assert [*plan.student][:first] == pairing.student.blocks()[:first]
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(plan.student.eval()(images), last.model.eval()(images))


def test_adapters_fit_both_widths_and_have_no_bias() -> None:
    pairing = digits_pairing()
    plan = NetGraft().plan(pairing)
    # the cuts are 32/32, 64/32 and 128/64 wide; nothing is needed behind the inherited block
    expected = [{(32, 64)}, {(64, 32), (64, 128)}, {(128, 64)}]
    for phase, shapes in zip(plan.phases, expected, strict=False):
        adapters = [layer for layer in phase.trainable.children() if layer in phase.adapters]
        assert len(adapters) == len(phase.adapters)
        widths = set()
        for layer in adapters:
            assert isinstance(layer, nn.Conv2d)
            assert (layer.kernel_size, layer.bias) == ((1, 1), None)
            widths.add((layer.in_channels, layer.out_channels))
        assert widths == shapes
    joined = plan.phases[-1]
    assert set(joined.adapters) == {adapter for phase in plan.phases[:3] for adapter in phase.adapters}


def test_steps_and_rates_of_each_block() -> None:
    method = NetGraft(block_steps=(5, 6), block_lr=(0.1, 0.2), adapter_lr=0.3, join_lr=0.4, join_steps=7, batch_size=9)
    schedules = [phase.schedule for phase in method.plan(digits_pairing("none")).phases]
    assert [schedule.steps for schedule in schedules] == [5, 6, 6, 6, 7, 7, 7]
    assert [schedule.lr for schedule in schedules] == [0.1, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4]
    assert [schedule.adapter_lr for schedule in schedules] == [0.3] * 4 + [0.4] * 3
    assert {schedule.batch_size for schedule in schedules} == {9}


def test_phases_without_steps_are_left_out() -> None:
    pairing = digits_pairing()
    assert [p.name for p in NetGraft(block_steps=(0,), join_steps=2).plan(pairing).phases] == [
        "join blocks 2-3",
        "join blocks 2-4",
    ]
    assert [p.name for p in NetGraft(block_steps=(0, 1), join_steps=0).plan(pairing).phases] == [
        "graft block 3",
        "graft block 4",
    ]


def test_printed_plan_says_what_will_be_done() -> None:
    plan = NetGraft(block_steps=(11,), join_steps=22, batch_size=33, block_lr=(0.5,), adapter_lr=0.25).plan(
        digits_pairing()
    )
    lines = str(plan).splitlines()
    assert "5 phases, 77 steps" in lines[0]
    for number, (line, phase) in enumerate(zip(lines[1:], plan.phases, strict=True), 1):
        trained = sum(p.numel() for p in phase.trainable.parameters())
        extra = sum(p.numel() for adapter in phase.adapters for p in adapter.parameters())
        assert line.strip().startswith(f"{number}. {phase.name}: {phase.schedule.steps} steps of 33")
        assert f"{trained:,} parameters ({extra:,} in adapters)" in line
        assert f"lr {phase.schedule.lr:g}, adapters {phase.schedule.adapter_lr:g}" in line
    assert "lr 0.5, adapters 0.25" in lines[1]


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"join_steps": -1}, {"block_steps": (3, -1)}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="batch_size must be at least 1 and steps at least 0"):
        NetGraft(**settings)


# --- published settings


def reference(images: int, classes: int) -> NetGraft:
    method = choose("netgraft", "reference", Budget(images, classes)).method
    assert isinstance(method, NetGraft)
    return method


@pytest.mark.parametrize("shots", [1, 2, 5, 7, 10, 20, 50])
@pytest.mark.parametrize("classes", [10, 100])
def test_reference_settings_are_the_published_codes(shots: int, classes: int) -> None:
    method = reference(shots * classes, classes)
    batch = 64 * shots // 10
    epoch = -(-shots * classes // batch)
    epochs = [100, 60, 60] if classes == 10 else [1000, 200, 200]
    rates = [2.5e-4, 2.5e-4, 2.5e-4] if classes == 10 else [2.5e-4, 1e-3, 1e-3]
    assert method.batch_size == batch
    assert list(method.block_steps) == [number * epoch for number in epochs]
    assert method.join_steps == (100 if classes == 10 else 150) * epoch
    np.testing.assert_allclose(method.block_lr, np.array(rates) * shots / 10)
    np.testing.assert_allclose(method.adapter_lr, (2.5e-3 if classes == 10 else 1e-3) * shots / 10)
    assert method.join_lr == 1e-4
    assert (method.schedule, method.whole_epochs) == ("constant", True)


def test_reference_steps_hardly_depend_on_the_shots() -> None:
    for shots in (1, 10, 50):
        method = reference(10 * shots, 10)
        assert (sum(method.block_steps), 2 * method.join_steps) == (440, 400)
    method = reference(1000, 100)
    assert sum(method.block_steps) == pytest.approx(23_000, rel=0.03)
    assert 2 * method.join_steps == pytest.approx(5_000, rel=0.05)


def test_reference_plan_of_the_digits_has_the_steps_of_the_article() -> None:
    plan = reference(100, 10).plan(digits_pairing())
    assert [phase.schedule.steps for phase in plan.phases] == [200, 120, 120, 200, 200]
    assert {phase.schedule.optimizer for phase in plan.phases} == {"adam"}
    assert {phase.schedule.weight_decay for phase in plan.phases} == {0.0}


def test_default_settings_do_not_depend_on_the_shots() -> None:
    presets = [choose("netgraft", "default", Budget(images, 10)) for images in (10, 100, 500)]
    assert presets[0] == presets[1] == presets[2]


# --- the loss


def test_reference_loss_is_the_articles_sum() -> None:
    method = reference(100, 10)
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 64, 10))
    expected = sum(
        np.sum((z / np.linalg.norm(z) - t / np.linalg.norm(t)) ** 2) for z, t in zip(student, teacher, strict=True)
    )
    terms = (
        method.plan(digits_pairing())
        .phases[0]
        .objective(StepOutputs(torch.from_numpy(student), torch.from_numpy(teacher), None))
    )
    assert float(sum(terms.values())) == pytest.approx(float(expected), rel=1e-6)


class Losses(SilentReporter):
    """Keeps the loss of each step, phase by phase."""

    def __init__(self) -> None:
        self.phases: list[list[float]] = []

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        self.phases.append([])

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        self.phases[-1].append(sum(terms.values()))


def test_loss_falls_in_every_phase_of_stage_one() -> None:
    teacher = load_teacher("digits_vgg7_bn")
    student = build_student("digits_vgg7_bn_half", teacher=teacher, seed=0)
    images = open_data("digits").train.load_many(range(20))
    method = NetGraft(block_steps=(40,), join_steps=20, batch_size=20, block_lr=(3e-3,), join_lr=3e-3)
    losses = Losses()
    prepare(
        teacher,
        student,
        images,
        method=method,
        init="random",
        views=ViewPolicy("plain", pool=0),
        runner=Runner(accelerator="cpu", precision="32"),
    ).run(reporter=losses)
    assert [len(phase) for phase in losses.phases] == [40, 40, 40, 20, 20]
    for phase in losses.phases[:3]:
        assert phase[-1] < 0.5 * phase[0]
    for phase in losses.phases[3:]:
        assert phase[-1] < phase[0]


# --- two families


def noise(count: int, side: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


class Unfolded(SilentReporter):
    """Asks the student before its adapters are folded."""

    def __init__(self, prepared: Distillation, images: Tensor) -> None:
        self.prepared, self.images = prepared, images
        self.logits = torch.empty(0)

    @torch.no_grad()
    def phase_finished(self, seconds: float) -> None:
        self.logits = self.prepared.plan.student(self.images)


def two_steps(teacher: nn.Module, student: nn.Module, side: int) -> Distillation:
    """Prepare a run of a step a phase on four noise images."""
    config: dict[str, Any] = {
        "input_size": (3, side, side),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.3, 0.3, 0.3),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    return prepare(
        teacher,
        student,
        noise(4, side),
        method=NetGraft(block_steps=(1,), join_steps=1, batch_size=4),
        views=ViewPolicy("plain", pool=0),
        data_config=config,
        runner=Runner(accelerator="cpu", precision="32"),
    )


def test_another_family_of_another_width() -> None:
    torch.manual_seed(0)
    teacher = timm.create_model("resnet18", num_classes=7).eval()
    student = timm.create_model("mobilenetv2_050", num_classes=7)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    shapes = {name: value.shape for name, value in student.state_dict().items()}
    prepared = two_steps(teacher, student, 64)
    assert (prepared.pairing.init, prepared.pairing.inherited, len(prepared.pairing)) == ("random", 0, 5)
    assert len(prepared.plan.phases) == 5 + 4
    images = torch.randn(2, 3, 64, 64)
    unfolded = Unfolded(prepared, images)
    distilled = prepared.run(reporter=unfolded)
    # each block begins with a plain convolution or a linear layer, so every adapter folds
    assert distilled.plain
    assert distilled.student is student
    assert len(distilled.folding.folded) == 4
    assert {name: value.shape for name, value in student.state_dict().items()} == shapes
    with torch.no_grad():
        logits: Tensor = distilled.student(images)
    assert logits.shape == (2, 7)
    torch.testing.assert_close(logits, unfolded.logits, atol=1e-4, rtol=1e-4)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_adapters_that_no_layer_takes_in_stay_and_are_reported() -> None:
    torch.manual_seed(0)
    teacher, student = timm.create_model("cifar_resnet18").eval(), timm.create_model("cifar_resnet20")
    prepared = two_steps(teacher, student, 32)
    images = torch.randn(2, 3, 32, 32)
    unfolded = Unfolded(prepared, images)
    distilled = prepared.run(reporter=unfolded)
    # the first residual block adds its input to its output; the others project it by a convolution
    assert distilled.folding.kept == {1: "a residual path carries the input on"}
    assert not distilled.plain
    kept = distilled.folding.student[1]
    assert isinstance(kept, nn.Conv2d)
    assert (kept.in_channels, kept.out_channels, kept.kernel_size) == (16, 16, (1, 1))
    with torch.no_grad():
        logits: Tensor = distilled.student(images)
    assert logits.shape == (2, 10)
    torch.testing.assert_close(logits, unfolded.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"block_steps": ()}, "at least one value"),
        ({"join_steps": -1}, "steps at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"join_lr": float("nan")}, "rates must be positive"),
        ({"block_lr": (1e-3, -1e-3)}, "rates must be positive"),
    ],
)
def test_impossible_hyper_parameters_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        NetGraft(**values)
