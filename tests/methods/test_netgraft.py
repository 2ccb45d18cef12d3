"""The method: its plan, its published settings, its loss, and that it trains pairs of any family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.errors import RequestError
from netgraft.grafting.adapters import Adapter
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.method import Budget
from netgraft.methods.registry import NetGraft, choose
from netgraft.models.creation import build_student
from netgraft.models.loading import load_teacher
from netgraft.models.students import load_student
from netgraft.plan import StepOutputs
from netgraft.progress import SilentReporter
from netgraft.training.parallel import Processes
from netgraft.training.runner import Runner
from tests.support.method_pairs import Losses, prepare_run, with_observer
from tests.support.processes import HANGS, call, share
from tests.support.tiny_plan import SHARED, Case, make_views

Array = NDArray[np.float64]


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
    assert (method.schedule, method.whole_epochs, method.objective) == ("constant", True, "normalized")
    # nn.Conv2d(..., kernel_size=1) with its bias, and kaiming_normal_(mode="fan_out")
    assert (method.adapters, method.adapter_bias, method.adapter_init) == ("trained", True, "fan-out")


@pytest.mark.parametrize("classes", [10, 100])
def test_reference_views_and_start_are_the_published_codes(classes: int) -> None:
    """RandomCrop(32, padding=4), a flip and nothing else; no weight of the grafted blocks is the teacher's."""
    chosen = choose("netgraft", "reference", Budget(10 * classes, classes))
    views = chosen.views
    assert (views.pad, views.hflip) == (4, 0.5)
    assert (views.crop_scale, views.colour, views.mixup, views.cutmix) == (None, 0.0, 0.0, 0.0)
    assert chosen.init == "random"
    assert choose("netgraft", "default", Budget(10 * classes, classes)).init == "auto"


@pytest.mark.parametrize("start", [{}, {"solved": True}, {"kept": True}], ids=["other", "solved", "kept"])
def test_thorough_is_the_default_of_each_start_with_longer_joins_on_soft_targets(start: dict[str, bool]) -> None:
    budget = Budget(100, 10, **start)
    default, thorough = (choose("netgraft", name, budget) for name in ("default", "thorough"))
    assert thorough.method == replace(default.method, objective="kl", join_steps=4000)
    assert (thorough.views, thorough.init) == (default.views, default.init)


def test_reference_rates_are_the_published_ones_from_slices_too() -> None:
    """Whoever asks for another start asks for nothing else: no tenth of the rates."""
    pairing = digits_pairing(init="slice")
    assert pairing.starts_close
    phases = reference(100, 10).plan(pairing).phases
    assert [phase.schedule.lr for phase in phases] == [2.5e-4] * 3 + [1e-4] * 2
    assert [phase.schedule.adapter_lr for phase in phases] == [2.5e-3] * 3 + [1e-4] * 2


@pytest.mark.parametrize("fresh", [False, True])
def test_a_student_that_brings_weights_is_trained_at_once_without_adapters_and_slowly(fresh: bool) -> None:
    pairing = digits_pairing(init="keep")
    assert (pairing.init, pairing.inherited) == ("kept", 0)
    head = list(pairing.student.blocks()[-1].modules())[-1]
    pairing = replace(pairing, fresh=(head,) if fresh else ())
    method = choose("netgraft", "default", Budget(100, 10, kept=True)).method
    plan = method.plan(pairing)
    [phase] = plan.phases
    assert [*plan.student] == pairing.student.blocks()
    assert weights(phase.trainable) == weights(pairing.student)
    assert (phase.schedule.lr, phase.schedule.adapter_lr) == (pytest.approx(1e-4), 1e-3)
    outputs = StepOutputs(torch.randn(4, 10), torch.randn(4, 10), None)
    kd = choose("kd", "default", Budget(100, 10)).method.plan(pairing).phases[-1].objective(outputs)
    assert sum(phase.objective(outputs).values()) == pytest.approx(float(sum(kd.values())))
    # a new head alone learns at the whole rate
    assert [weights(each) for each in phase.adapters] == ([weights(head)] if fresh else [])
    [phase] = choose("kd", "default", Budget(100, 10, kept=True)).method.plan(pairing).phases
    assert (phase.schedule.lr, phase.schedule.adapter_lr) == (pytest.approx(1e-4), 1e-3)
    assert [weights(each) for each in phase.adapters] == ([weights(head)] if fresh else [])


def test_between_blocks_of_a_student_that_brings_weights_no_adapter_is_left() -> None:
    """Whoever asks for the article's stages gets adapters where teacher blocks stand beside them, and nowhere else."""
    plan = NetGraft(block_steps=(3,), join_steps=4).plan(digits_pairing(init="keep"))
    assert [phase.name for phase in plan.phases][-1] == "join blocks 1-4"
    assert [len(phase.adapters) for phase in plan.phases] == [1, 1, 2, 1, 1, 1, 0]
    assert not any(isinstance(layer, Adapter) for layer in plan.student)


def test_reference_adapters_have_the_published_codes_form() -> None:
    """A bias of zero, and weights of deviation sqrt(2 / out), as in kaiming_normal_ by fan-out."""
    plan = reference(100, 10).plan(digits_pairing())
    adapters = {adapter for phase in plan.phases for adapter in phase.adapters}
    shapes = []
    for adapter in adapters:
        assert isinstance(adapter, nn.Conv2d)
        assert isinstance(adapter.bias, Tensor)
        assert not adapter.bias.any()
        deviation = float(adapter.weight.detach().double().square().mean().sqrt())
        assert deviation == pytest.approx((2 / adapter.out_channels) ** 0.5, rel=0.1)
        shapes.append((adapter.in_channels, adapter.out_channels))
    assert sorted(shapes) == [(32, 64), (64, 32), (64, 128), (128, 64)]


def test_frozen_adapters_have_no_bias() -> None:
    plan = NetGraft(adapters="frozen", adapter_bias=True).plan(digits_pairing())
    adapters = [layer for layer in plan.student if isinstance(layer, Adapter)]
    assert adapters
    assert all(adapter.bias is None for adapter in adapters)


def test_reference_says_in_what_it_differs_from_the_published_code() -> None:
    meaning = NetGraft.presets["reference"].meaning
    departures = ("best epoch on the test set", "two linear layers", "views are drawn once", "normalised", "bfloat16")
    assert all(departure in meaning.partition("Still different")[2] for departure in departures)
    assert "random start" in meaning


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


def slope_of_the_sum(student: Array, teacher: Array) -> Array:
    """Of the article's loss at the student's logits, by hand: ``2 (I - u u^T) (u - v) / ||z||`` in each row."""
    u = student / np.linalg.norm(student, axis=1, keepdims=True)
    v = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    tangent = (u - v) - u * np.sum(u * (u - v), axis=1, keepdims=True)
    return 2 * tangent / np.linalg.norm(student, axis=1, keepdims=True)


def sum_by_hand(student: Array, teacher: Array) -> float:
    rows = zip(student, teacher, strict=True)
    return float(sum(np.sum((z / np.linalg.norm(z) - t / np.linalg.norm(t)) ** 2) for z, t in rows))


# the published code's epoch at ten shots is of 64 and 36 images
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("views", [64, 36, 9, 4])
def test_the_sum_is_over_the_views_of_the_batch_however_many_processes_share_it(views: int, count: int) -> None:
    objective = reference(100, 10).plan(digits_pairing()).phases[0].objective
    generator = np.random.default_rng(0)
    inputs, teacher = generator.normal(size=(views, 7)), generator.normal(size=(views, 10))
    start = generator.normal(size=(7, 10))
    gradients = []
    for rank in range(count):
        place: Any = SimpleNamespace(global_rank=rank, world_size=count)
        processes, batch = Processes(place), torch.arange(views)
        part = processes.part(batch)
        weight = torch.from_numpy(start.copy()).requires_grad_()
        logits, target = torch.from_numpy(inputs)[part] @ weight, torch.from_numpy(teacher)[part]
        terms = objective(StepOutputs(logits, target, None, whole_batch=views))
        (processes.weight(part, batch) * terms["logits"]).backward()
        assert weight.grad is not None
        gradients.append(weight.grad.numpy())
        if count == 1:
            assert float(terms["logits"].detach()) == pytest.approx(sum_by_hand(inputs @ start, teacher), rel=1e-12)
    expected = inputs.T @ slope_of_the_sum(inputs @ start, teacher)
    # several processes average their gradients
    np.testing.assert_allclose(np.mean(gradients, axis=0), expected, rtol=0, atol=1e-12)


def test_the_last_batch_of_an_epoch_counts_by_its_views() -> None:
    """Five images in batches of three: the logged loss of each step is the sum over three or two of them."""
    method = NetGraft(block_steps=(4,), join_steps=2, batch_size=3, whole_epochs=True, objective="normalized")
    seen: list[tuple[int, float]] = []

    def observe(number: int, batch: StepOutputs) -> None:
        assert batch.target is not None
        student, teacher = batch.output.detach().double().numpy(), batch.target.double().numpy()
        assert batch.batch_size == len(student)
        seen.append((len(student), sum_by_hand(student, teacher)))

    losses = Losses()
    with_observer(prepare_run("digits", method, count=5), observe).run(reporter=losses)
    assert [views for views, _ in seen] == [3, 2] * (3 * 2 + 2 * 1)
    logged = [sum(terms.values()) for phase in losses.phases for terms in phase]
    np.testing.assert_allclose(logged, [expected for _, expected in seen], rtol=1e-5)


def summed_case() -> Case:
    """A tiny plan with the article's sum as its objective; its first phase ends each epoch by a smaller batch."""
    objective: Any = NetGraft(objective="normalized").plan(digits_pairing()).phases[0].objective
    return Case(norm=False, schedules=SHARED, objective=objective)


def summed_run(folder: str) -> None:
    """Run it on two processes; a subprocess calls this."""
    share(summed_case(), folder)


def test_two_processes_sum_as_one_does(tmp_path: Path) -> None:
    process = call("summed_run", str(tmp_path), script=tmp_path / "run.py", module=__name__)
    _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 0, error
    case = summed_case()
    untrained = {name: value.clone() for name, value in case.student.state_dict().items()}
    case.run(views=make_views(7))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, expected in case.student.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], expected, atol=1e-6, rtol=1e-5)
    # a factor of two would be seen: plain gradient descent
    assert (untrained["1.weight"] - ranks[0]["1.weight"]).abs().max() > 1e-3


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
    phases = [[sum(terms.values()) for terms in phase] for phase in losses.phases]
    assert [len(phase) for phase in phases] == [40, 40, 40, 20, 20]
    for phase in phases[:3]:
        assert phase[-1] < 0.5 * phase[0]
    for phase in phases[3:]:
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


@pytest.mark.parametrize("init", ["random", "slice"])
def test_a_reference_student_keeps_the_adapter_whose_bias_does_not_fold(tmp_path: Path, init: str) -> None:
    method = replace(reference(20, 10), block_steps=(2,), join_steps=2)
    prepared = prepare_run("digits", method, count=20, init=init)
    images = torch.randn(3, 1, 8, 8)
    unfolded = Unfolded(prepared, images)
    distilled = prepared.run(reporter=unfolded)
    # the one in front of the head folds into its linear layer, bias and all
    assert distilled.folding.folded == ("head.fc",)
    [(place, reason)] = distilled.folding.kept.items()
    assert reason == "features.14 pads with zeros, to which the adapter's bias isn't added"
    kept = distilled.folding.student[place]
    assert isinstance(kept, nn.Conv2d)
    assert isinstance(kept.bias, Tensor)
    assert kept.bias.any()
    assert distilled.facts()["kept_adapter_parameters"] == 32 * 32 + 32
    distilled.save(tmp_path / "student")
    opened = load_student(tmp_path / "student")
    with torch.no_grad():
        torch.testing.assert_close(distilled.student(images), unfolded.logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(opened(images), distilled.student(images))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"block_steps": ()}, "at least one value"),
        ({"join_steps": -1}, "steps at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"join_lr": float("nan")}, "join_lr must be a finite number, not nan"),
        ({"block_lr": (1e-3, -1e-3)}, "rates must be positive"),
        ({"adapter_init": "he"}, "adapter_init must be one of fan-in, fan-out"),
    ],
)
def test_impossible_hyper_parameters_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        NetGraft(**values)


@pytest.mark.parametrize(("adapters", "trained"), [("trained", True), ("frozen", False)])
def test_adapters_between_equal_widths_stand_where_they_learn(adapters: str, trained: bool) -> None:
    """Behind the first block both are 32 wide, and the next convolution takes an adapter in."""
    first = NetGraft(adapters=adapters).plan(digits_pairing("none")).phases[0]
    assert bool(first.adapters) == trained
