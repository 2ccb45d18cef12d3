"""The runner trains what the plan says, as a hand-written loop would, and nothing else."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from netgraft import NetGraft, prepare
from netgraft.data.view_policy import ViewPolicy
from netgraft.data.views import Views
from netgraft.modules import state_digest
from netgraft.plan import Phase, Plan, TrainingSchedule
from netgraft.training.cache_storage import MemoryStorage
from netgraft.training.runner import Runner
from netgraft.training.sampling import batch_indices
from tests.support.processes import HANGS, call
from tests.support.random_models import build
from tests.support.tiny_plan import (
    IMAGES,
    SHARED,
    Case,
    Notebook,
    Squared,
    convolution,
    head,
    make_views,
    rows,
)


def test_only_the_trainable_part_is_in_train_mode() -> None:
    seen: list[dict[nn.Module, bool]] = []
    case = Case(objective=Squared(watch=lambda batch: seen.append({m: m.training for m in everything})))
    # the outer containers are the phases' own and run nothing by themselves
    everything = [*case.teacher.modules(), *case.enter.modules(), *case.block.modules(), *case.exit.modules()]
    everything += list(case.head.modules())
    norm = case.block[0][1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    case.run()
    scion = {*case.enter.modules(), *case.block.modules(), *case.exit.modules()}
    for step, modes in enumerate(seen):
        training = scion if step < 4 else scion | set(case.head.modules())
        assert {module for module, mode in modes.items() if mode} == training
    assert len(seen) == 8
    assert (norm.running_mean - before).abs().min() > 0
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 8


@pytest.mark.parametrize("fails", [False, True])
def test_modes_flags_and_the_teacher_are_as_before(fails: bool) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    case = Case(objective=Squared(surprise_at=6 if fails else -1, surprise=fail))
    chooser = random.Random(0)
    modules = list(nn.ModuleList([case.teacher, case.student]).modules())
    parameters = list(nn.ModuleList([case.teacher, case.student]).parameters())
    for module in modules:
        module.training = chooser.random() < 0.5
    for parameter in parameters:
        parameter.requires_grad_(chooser.random() < 0.5)
    modes, flags = [m.training for m in modules], [p.requires_grad for p in parameters]
    digest, student = state_digest(case.teacher), state_digest(case.student)
    if fails:
        with pytest.raises(ZeroDivisionError):
            case.run()
    else:
        case.run()
    assert [m.training for m in modules] == modes
    assert [p.requires_grad for p in parameters] == flags
    assert all(p.grad is None for p in parameters)
    assert state_digest(case.teacher) == digest
    assert state_digest(case.student) != student


def test_every_trainable_parameter_moves_and_no_other() -> None:
    case = Case(schedules=(TrainingSchedule(3, 8, 1e-2, 3e-2), TrainingSchedule(0, 8, 1e-2)))
    before = {name: value.clone() for name, value in case.student.named_parameters()}
    case.run()
    moved = {id(p) for name, p in case.student.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {id(p) for part in (case.enter, case.block, case.exit) for p in part.parameters()}


def test_adapters_have_their_own_rate() -> None:
    case = Case(schedules=(TrainingSchedule(1, 8, 1e-2, 3e-2), TrainingSchedule(0, 8, 1e-2)))
    before = copy.deepcopy(case.student)
    case.run()
    steps = [(new - old).abs() for new, old in zip(case.student.parameters(), before.parameters(), strict=True)]
    sizes = {id(p): step for p, step in zip(case.student.parameters(), steps, strict=True)}
    # Adam's first step is the rate itself, up to eps
    for parts, rate in [((case.enter, case.exit), 3e-2), ((case.block,), 1e-2)]:
        for part in parts:
            for parameter in part.parameters():
                assert sizes[id(parameter)].median().item() == pytest.approx(rate, rel=1e-3)


# --- against a loop written by hand


def by_hand(case: Case, views: Views, seed: int) -> None:
    """The two phases of ``case`` in plain torch: rates and schedule in closed form."""
    shown = len(views) if views.per_image is not None else 6 * IMAGES
    images = views.batch(range(shown)).contiguous(memory_format=torch.channels_last)
    case.teacher.eval()
    with torch.no_grad():
        front, target = case.teacher[0](images), case.teacher(images)
    rates: list[tuple[float, float, Callable[[int], float]]] = [
        (1e-2, 3e-2, lambda step: math.cos(math.pi * (step + 0.5) / 8) ** 2),
        (5e-3, 5e-3, lambda step: 1.0),
    ]
    for number, (lr, adapter_lr, factor) in enumerate(rates):
        body = [*case.block.parameters(), *(case.head.parameters() if number else ())]
        adapters = [*case.enter.parameters(), *case.exit.parameters()]
        optimizer = torch.optim.Adam([{"params": adapters}, {"params": body}])
        case.block.train()
        for step in range(4):
            chosen = batch_indices(
                seed, number, step, images=IMAGES, per_image=views.per_image, batch_size=8, epochs_before=3 * number
            )
            grafted = case.exit(case.block(case.enter(front[chosen])))
            output = case.head(grafted) if number else case.teacher[2](grafted)
            loss = ((output - target[chosen]) ** 2).sum() / 8
            for group, peak in zip(optimizer.param_groups, (adapter_lr, lr), strict=True):
                group["lr"] = peak * factor(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_steps_equal_a_loop_written_by_hand(cache_gib: float) -> None:
    schedules = (TrainingSchedule(4, 8, 1e-2, 3e-2, lr_schedule="cosine"), TrainingSchedule(4, 8, 5e-3))
    case, reference = Case(schedules=schedules), Case(schedules=schedules)
    case.run(runner=Runner(accelerator="cpu", precision="32", seed=5, cache_gib=cache_gib))
    by_hand(reference, make_views(), seed=5)
    untrained = Case(schedules=schedules)
    assert (untrained.enter.weight - case.enter.weight).abs().max() > 1e-3
    for (name, value), expected in zip(
        case.student.state_dict().items(), reference.student.state_dict().values(), strict=True
    ):
        # the loss is summed in another order, and Adam divides that rounding by small gradients; a thousandth of a step
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5, msg=name)


def test_without_an_end_of_views_steps_see_new_ones_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the loop by hand, which renders the very views of each step."""
    views = make_views(per_image=None)
    shown: list[list[int]] = []
    rooms: list[Any] = []
    batch, allocate = views.batch, MemoryStorage.allocate

    def watched_batch(indices: Any) -> Tensor:
        shown.append([int(index) for index in indices])
        return batch(indices)

    def watched_allocate(*given: Any) -> Tensor | None:
        rooms.append(given)
        return allocate(*given)

    ahead: list[list[int]] = []
    monkeypatch.setattr(views, "ahead", lambda indices: ahead.append(indices.tolist()))
    monkeypatch.setattr(views, "batch", watched_batch)
    monkeypatch.setattr(MemoryStorage, "allocate", watched_allocate)
    case, reference = Case(dropout=0.0), Case(dropout=0.0)
    case.run(views=views, runner=Runner(accelerator="cpu", precision="32", seed=5))
    steps = shown[1:]  # behind the examples of a forward
    expected = [
        batch_indices(5, phase, step, images=IMAGES, per_image=None, batch_size=8, epochs_before=3 * phase).tolist()
        for phase in range(2)
        for step in range(4)
    ]
    assert steps == expected
    # while a step is taken, the images of the next one are decoded
    assert ahead == [*expected[1:4], *expected[5:]]
    assert len({number for step in steps for number in step}) == 8 * 8
    assert not rooms
    by_hand(reference, make_views(per_image=None), seed=5)
    for value, wanted in zip(case.student.state_dict().values(), reference.student.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)


def noise(side: int, channels: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    shape = (side, side, 3)[: 2 if channels == 1 else 3]
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for _ in range(10)]


@pytest.mark.parametrize(
    ("teacher", "student", "side", "channels"),
    [("digits_vgg7_bn", "digits_vgg7_bn_half", 8, 1), ("cifar_resnet20", "cifar_resnet8", 32, 3)],
)
def test_what_is_computed_again_has_the_bits_of_what_is_kept(
    teacher: str, student: str, side: int, channels: int
) -> None:
    trained: list[dict[str, Tensor]] = []
    for cache_gib in (None, 0.0):
        runner = Runner(accelerator="cpu", precision="32", cache_gib=cache_gib)
        prepared = prepare(
            build(teacher, num_classes=10),
            build(student, seed=1, num_classes=10),
            noise(side, channels),
            method=NetGraft(block_steps=(6,), join_steps=4, batch_size=8, block_lr=(1e-2,), join_lr=1e-2),
            views=ViewPolicy("shifted", pad=1, pool=30),
            runner=runner,
        )
        untrained = copy.deepcopy(prepared.plan.student.state_dict())
        notebook = Notebook()
        frozen_seconds = runner.run(prepared.plan, prepared.views, reporter=notebook).frozen_seconds
        assert (frozen_seconds > 0) == (cache_gib is None)
        assert any("computed again" in note for note in notebook.notes) == (cache_gib is not None)
        trained.append(prepared.plan.student.state_dict())
    kept, computed = trained
    # convolutions and products of more than a few rows round as they do in larger batches
    assert [name for name, value in kept.items() if not torch.equal(value, computed[name])] == []
    assert max(float((kept[name] - value).abs().max()) for name, value in untrained.items() if "weight" in name) > 1e-3


def test_decay_shrinks_matrices_alone() -> None:
    schedule = TrainingSchedule(2, 8, 0.1, optimizer="sgd", weight_decay=0.5)
    case = Case(schedules=(schedule, replace(schedule, steps=0)))
    object.__setattr__(case.plan.phases[0], "objective", lambda batch: {"nothing": 0 * batch.output.sum()})
    before = copy.deepcopy(case.block)
    case.run()
    # without a gradient SGD with Nesterov momentum 0.9 is a recurrence in the weight alone
    shrunk, speed = 1.0, 0.0
    for _ in range(2):
        gradient = 0.5 * shrunk
        speed = 0.9 * speed + gradient
        shrunk -= 0.1 * (gradient + 0.9 * speed)
    for old, new in zip(before.parameters(), case.block.parameters(), strict=True):
        torch.testing.assert_close(new, old * (shrunk if old.dim() > 1 else 1.0), rtol=1e-5, atol=0)


def test_batches_of_whole_epochs() -> None:
    sizes: list[int] = []
    schedule = TrainingSchedule(6, 8, 1e-3, whole_epochs=True)
    Case(schedules=(schedule, schedule), objective=Squared(watch=lambda batch: sizes.append(len(batch.output)))).run()
    assert sizes == [8, 4] * 6


@pytest.mark.parametrize("steps", [1, 2, 8, 100])
def test_schedules_in_closed_form(steps: int) -> None:
    middle = (np.arange(steps) + 0.5) / steps
    expected = {
        "constant": np.ones(steps),
        "cosine": np.cos(np.pi * middle / 2) ** 2,
        "one-cycle": np.where(
            middle < 0.25, np.sin(2 * np.pi * middle) ** 2, np.cos(np.pi * (middle - 0.25) / 1.5) ** 2
        ),
    }
    for name, values in expected.items():
        schedule = TrainingSchedule(steps, 8, 1.0, lr_schedule=name)
        np.testing.assert_allclose([schedule.factor(step) for step in range(steps)], values, atol=1e-12)


def test_unknown_schedule_and_optimizer_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule must be constant, cosine or one-cycle, not 'exp'"):
        TrainingSchedule(4, 8, 1e-3, lr_schedule="exp").factor(0)
    with pytest.raises(ValueError, match="optimizer must be adam, adamw or sgd, not 'lion'"):
        Case(schedules=(TrainingSchedule(4, 8, 1e-3, optimizer="lion"), TrainingSchedule(4, 8, 1e-3))).run()


def test_blocks_trained_in_one_phase_are_read_anew_in_the_next() -> None:
    torch.manual_seed(0)
    front, tail = convolution(1, 4, norm=True), head(4)
    model, inputs, targets = nn.Sequential(front, tail), [], []
    teacher = nn.Sequential(convolution(1, 4, norm=True), head(4))
    schedule = TrainingSchedule(1, IMAGES, 0.1, whole_epochs=True)
    first = Phase("front", model, front, Squared(), schedule, teacher)
    # what the first phase trains is a part of the second one's teacher
    taught = nn.Sequential(front, copy.deepcopy(tail)).eval()
    second = Phase("tail", model, tail, Squared(watch=lambda batch: targets.append(batch.target)), schedule, taught)
    tail.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()) if module.training else None)
    views = make_views(per_image=1)
    untrained = copy.deepcopy(front)
    old_tail = copy.deepcopy(tail)
    Runner(accelerator="cpu", precision="32").run(Plan("two", (first, second), model), views)
    with torch.no_grad():
        expected, stale = (block.eval()(views.batch(range(IMAGES))) for block in (front, untrained))
        answers = old_tail.eval()(expected)

    def in_order(values: Tensor | None) -> Tensor:
        assert values is not None
        flat = values.flatten(1)
        return flat[flat.sum(1).argsort()]

    assert not torch.allclose(in_order(stale), in_order(expected), atol=1e-3)
    torch.testing.assert_close(in_order(inputs[-1]), in_order(expected))
    torch.testing.assert_close(in_order(targets[0]), in_order(answers))


def test_teacher_that_is_trained_meanwhile_is_refused() -> None:
    torch.manual_seed(0)
    front, tail = convolution(1, 4, norm=False), head(4)
    model = nn.Sequential(front, tail)
    phase = Phase("tail", model, tail, Squared(), TrainingSchedule(1, IMAGES, 0.1), nn.Sequential(front, tail))
    with pytest.raises(ValueError, match="trains a part of its teacher"):
        Runner(accelerator="cpu", precision="32").run(Plan("itself", (phase,), model), make_views())


def test_dropout_depends_on_the_seed_alone() -> None:
    digests = []
    for callers_seed, seed in [(1, 0), (2, 0), (1, 3)]:
        torch.manual_seed(callers_seed)
        case = Case(dropout=0.5)
        case.run(runner=Runner(accelerator="cpu", precision="32", seed=seed))
        digests.append(state_digest(case.student))
    assert digests[0] == digests[1] != digests[2]


def test_each_step_has_random_numbers_of_its_own() -> None:
    drawn: list[list[float]] = []
    for _ in range(2):
        numbers: list[float] = []
        Case(objective=Squared(watch=lambda batch, to=numbers: to.append(float(torch.rand(()))))).run()  # type: ignore[misc]
        drawn.append(numbers)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 8


def test_the_callers_generators_are_left_alone() -> None:
    def states() -> list[str]:
        return [str(torch.get_rng_state().tolist()), repr(random.getstate()), repr(np.random.get_state())]

    case, before = Case(dropout=0.5), states()
    case.run()
    assert states() == before


def test_two_processes_train_the_student_of_one(tmp_path: Path) -> None:
    process = call("shared_run", str(tmp_path), script=tmp_path / "shared.py")
    case = Case(norm=False, schedules=SHARED)
    case.run(views=make_views(7))
    _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 0, error
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    untrained = Case(norm=False).student.state_dict()
    for name, expected in case.student.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        # the same gradients, summed in another order
        torch.testing.assert_close(ranks[0][name], expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(untrained["1.weight"], ranks[0]["1.weight"], atol=1e-3)
    assert rows(tmp_path) == [(0, 5), (1, 4)]
