"""Batches: every promise about which views a step sees, counted by brute force."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from netgraft.plan import TrainingSchedule, steps_per_epoch
from netgraft.seeding import derived_seed, seed_generators
from netgraft.training.sampling import Batches, batch_indices


def views(steps: int, *, images: int, per_image: int, batch_size: int, whole: bool = False, seed: int = 0) -> list[int]:
    """All views that the first ``steps`` steps see, in order."""
    return [
        int(view)
        for step in range(steps)
        for view in batch_indices(
            seed, 0, step, images=images, per_image=per_image, batch_size=batch_size, whole_epochs=whole
        )
    ]


@pytest.mark.parametrize(("images", "batch_size"), [(10, 3), (7, 7), (5, 12), (1, 4), (12, 1), (100, 64)])
def test_each_epoch_shows_each_image_once(images: int, batch_size: int) -> None:
    per_image, epochs = 3, 8
    seen = views(-(-images * epochs // batch_size), images=images, per_image=per_image, batch_size=batch_size)
    for epoch in range(epochs):
        shown = [view % images for view in seen[epoch * images : (epoch + 1) * images]]
        assert sorted(shown) == list(range(images))


@pytest.mark.parametrize(("images", "per_image", "batch_size"), [(10, 4, 3), (6, 5, 16), (1, 9, 4), (8, 1, 3)])
def test_each_cycle_shows_each_view_once(images: int, per_image: int, batch_size: int) -> None:
    pool = images * per_image
    seen = views(-(-3 * pool // batch_size), images=images, per_image=per_image, batch_size=batch_size)
    for cycle in range(3):
        assert Counter(seen[cycle * pool : (cycle + 1) * pool]) == Counter(range(pool))


def test_cycles_and_epochs_have_orders_of_their_own() -> None:
    images, per_image = 20, 3
    seen = views(12, images=images, per_image=per_image, batch_size=images)
    epochs = [seen[number * images : (number + 1) * images] for number in range(12)]
    assert len({tuple(view % images for view in epoch) for epoch in epochs}) == 12
    # which view an image shows first differs between images and between cycles
    first_views = [sorted((view % images, view // images) for view in epochs[cycle * per_image]) for cycle in range(4)]
    assert len({tuple(chosen) for chosen in first_views}) == 4
    assert len({turn for _, turn in first_views[0]}) > 1


def test_whole_epochs_end_with_a_smaller_batch() -> None:
    sizes = [
        len(batch_indices(0, 0, step, images=100, per_image=2, batch_size=64, whole_epochs=True)) for step in range(6)
    ]
    assert sizes == [64, 36, 64, 36, 64, 36]
    seen = views(6, images=100, per_image=2, batch_size=64, whole=True)
    for epoch in range(3):
        assert sorted(view % 100 for view in seen[epoch * 100 : (epoch + 1) * 100]) == list(range(100))


def test_whole_epochs_of_few_images_are_one_batch_each() -> None:
    for step in range(4):
        shown = batch_indices(0, 0, step, images=6, per_image=5, batch_size=64, whole_epochs=True)
        assert sorted((shown % 6).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"), [(100, 64, 2), (128, 64, 2), (129, 64, 3), (10, 6, 2), (5, 64, 1)]
)
def test_steps_per_epoch(images: int, batch_size: int, expected: int) -> None:
    assert steps_per_epoch(images, batch_size) == expected


def test_batches_are_a_pure_function() -> None:
    def batch(seed: int, phase: int, step: int) -> tuple[int, ...]:
        return tuple(batch_indices(seed, phase, step, images=11, per_image=4, batch_size=8).tolist())

    calls = [(seed, phase, step) for seed in range(3) for phase in range(3) for step in range(9)]
    forwards = {call: batch(*call) for call in calls}
    random.Random(1).shuffle(calls)
    for number, call in enumerate(calls):
        torch.manual_seed(number)
        assert batch(*call) == forwards[call]


def test_batches_leave_global_generators_alone() -> None:
    states = [str(torch.get_rng_state().tolist()), repr(random.getstate()), repr(np.random.get_state())]
    batch_indices(3, 1, 4, images=13, per_image=7, batch_size=8)
    assert states == [str(torch.get_rng_state().tolist()), repr(random.getstate()), repr(np.random.get_state())]


def test_seeds_and_phases_differ() -> None:
    settings = {"images": 50, "per_image": 4, "batch_size": 50}
    drawn = {
        tuple(batch_indices(seed, phase, 0, **settings).tolist())  # type: ignore[arg-type]
        for seed in range(4)
        for phase in range(4)
    }
    assert len(drawn) == 16


@pytest.mark.parametrize("whole", [False, True])
def test_all_phases_go_through_an_images_views_in_the_same_order(whole: bool) -> None:
    images, per_image = 9, 5
    shown: list[list[list[int]]] = []
    orders: set[tuple[int, ...]] = set()
    # phases of other lengths and other batches
    for phase, (batch_size, epochs) in enumerate([(4, 12), (9, 7), (30, 12), (1, 3)]):
        turns: list[list[int]] = [[] for _ in range(images)]
        steps = epochs * steps_per_epoch(images, batch_size) if whole else -(-epochs * images // batch_size)
        batches = [
            batch_indices(
                3, phase, step, images=images, per_image=per_image, batch_size=batch_size, whole_epochs=whole
            ).tolist()
            for step in range(steps)
        ]
        seen = [view for batch in batches for view in batch]
        orders.add(tuple(view % images for view in seen[:images]))
        for view in seen[: epochs * images]:
            turns[view % images].append(view // images)
        assert [len(turn) for turn in turns] == [epochs] * images
        shown.append(turns)
    assert len(orders) == 4  # of the images themselves
    for turns in shown:
        for turn, longest in zip(turns, shown[0], strict=True):
            assert turn == longest[: len(turn)]
    assert len({tuple(turn) for turn in shown[0]}) > 1


def test_derived_seeds_depend_on_every_part() -> None:
    seeds = {derived_seed(*parts) for parts in [("a", 1, 2), ("a", 2, 1), ("b", 1, 2), ("a", 12), ("a", 1), ()]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_are_seeded_as_by_torch_itself() -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    seed_generators(7, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)


def test_batches_of_a_plan_are_those_of_its_phases() -> None:
    schedules = [TrainingSchedule(4, 8, 1e-3), TrainingSchedule(4, 5, 1e-3, whole_epochs=True)]
    batches = Batches(3, images=12, per_image=4, schedules=schedules)
    for step in range(4):
        first = batch_indices(3, 0, step, images=12, per_image=4, batch_size=8)
        second = batch_indices(3, 1, step, images=12, per_image=4, batch_size=5, whole_epochs=True)
        assert torch.equal(batches.indices(0, step), first)
        assert torch.equal(batches.indices(1, step), second)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(8, False)], 8),
        ([(8, True)], 4),
        ([(6, True)], 6),
        ([(8, False), (5, True)], 2),
        ([(16, True)], 12),
        ([], None),
    ],
)
def test_the_smallest_batch_may_be_the_last_of_an_epoch(sizes: list[tuple[int, bool]], expected: int | None) -> None:
    schedules = [TrainingSchedule(4, size, 1e-3, whole_epochs=whole) for size, whole in sizes]
    assert Batches(0, images=12, per_image=4, schedules=schedules).smallest() == expected


def test_without_an_end_of_views_no_step_of_a_plan_sees_one_twice() -> None:
    schedules = [
        TrainingSchedule(7, 8, 1e-3),
        TrainingSchedule(5, 5, 1e-3, whole_epochs=True),
        TrainingSchedule(3, 40, 1e-3),
        TrainingSchedule(4, 12, 1e-3),
    ]
    batches = Batches(3, images=12, per_image=None, schedules=schedules)
    seen: list[int] = []
    last_epoch = -1
    for phase, schedule in enumerate(schedules):
        shown = [int(view) for step in range(schedule.steps) for view in batches.indices(phase, step)]
        # each epoch shows each image once, all by their next view; a phase begins with an epoch of its own
        for start in range(0, len(shown), 12):
            epoch = shown[start : start + 12]
            last_epoch += 1
            assert {view // 12 for view in epoch} == {last_epoch}
            assert len({view % 12 for view in epoch}) == len(epoch)
        seen += shown
    assert len(set(seen)) == len(seen)
    # a step is a function of its number
    assert torch.equal(batches.indices(2, 1), Batches(3, 12, None, schedules).indices(2, 1))
    orders = {tuple(view % 12 for view in seen[start : start + 12]) for start in range(0, 48, 12)}
    assert len(orders) == 4
