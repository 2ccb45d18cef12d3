"""Optimisers take the steps of the textbook, with the rates and the decay that a phase names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from netgraft.plan import Phase, TrainingSchedule
from netgraft.training.optimizers import make_optimizer, set_rates

Array = NDArray[np.float64]


def make(schedule: TrainingSchedule) -> tuple[Phase, nn.Sequential]:
    """A block between two adapters, in float64, and a head that isn't trained."""
    torch.manual_seed(0)
    enter, block, leave = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)), nn.Conv2d(5, 2, 1)
    scion = nn.Sequential(enter, block, leave).double()
    model = nn.Sequential(scion, nn.Conv2d(2, 2, 1).double())
    return Phase("graft", model, scion, lambda batch: {}, schedule, adapters=(enter, leave)), scion


def adam(weight: Array, gradients: list[Array], lr: float, decay: float) -> Array:
    """Kingma and Ba's algorithm 1, with an L2 penalty in the gradient."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        slope = gradient + decay * weight
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        weight = weight - lr * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weight


def adamw(weight: Array, gradients: list[Array], lr: float, decay: float) -> Array:
    """Loshchilov and Hutter's algorithm 2: the decay is no part of the gradient."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moved = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        weight = weight - lr * (moved + decay * weight)
    return weight


def sgd(weight: Array, gradients: list[Array], lr: float, decay: float) -> Array:
    """Nesterov's momentum of 0.9: look ahead along the velocity."""
    velocity = np.zeros_like(weight)
    for gradient in gradients:
        slope = gradient + decay * weight
        velocity = 0.9 * velocity + slope
        weight = weight - lr * (slope + 0.9 * velocity)
    return weight


@pytest.mark.parametrize("adapter_lr", [None, 3e-2])
@pytest.mark.parametrize(("name", "formula"), [("adam", adam), ("adamw", adamw), ("sgd", sgd)])
def test_steps_are_the_textbooks(name: str, formula: Any, adapter_lr: float | None) -> None:
    phase, scion = make(TrainingSchedule(5, 8, 1e-2, adapter_lr, optimizer=name, weight_decay=0.1))
    generator = np.random.default_rng(0)
    drawn = [[generator.normal(size=tuple(p.shape)) for _ in range(5)] for p in scion.parameters()]
    special = {id(p) for adapter in phase.adapters for p in adapter.parameters()}
    expected = [
        formula(
            p.detach().numpy().copy(),
            gradients,
            (adapter_lr or 1e-2) if id(p) in special else 1e-2,
            0.1 if p.dim() > 1 else 0.0,
        )
        for p, gradients in zip(scion.parameters(), drawn, strict=True)
    ]
    optimizer = make_optimizer(phase)
    for step in range(5):
        for parameter, gradients in zip(scion.parameters(), drawn, strict=True):
            parameter.grad = torch.from_numpy(gradients[step].copy())
        optimizer.step()
    for parameter, wanted in zip(scion.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_every_trained_weight_is_in_one_group_with_its_peak() -> None:
    phase, scion = make(TrainingSchedule(5, 8, 1e-3, 2e-3, weight_decay=0.5))
    groups = make_optimizer(phase).param_groups
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in scion.parameters())
    rates = {id(p): (group["lr"], group["peak"], group["weight_decay"]) for group in groups for p in group["params"]}
    enter, block, _ = scion
    assert rates[id(enter.weight)] == (2e-3, 2e-3, 0.5)
    assert rates[id(enter.bias)] == (2e-3, 2e-3, 0.0)
    assert isinstance(block, nn.Sequential)
    assert rates[id(block[0].weight)] == (1e-3, 1e-3, 0.5)
    assert rates[id(block[1].weight)] == (1e-3, 1e-3, 0.0)


def test_a_phase_without_adapters_or_without_matrices_has_fewer_groups() -> None:
    norm = nn.BatchNorm2d(3)
    phase = Phase("norm", nn.Sequential(norm), norm, lambda batch: {}, TrainingSchedule(1, 1, 0.1, 0.2))
    [group] = make_optimizer(phase).param_groups
    assert {id(p) for p in group["params"]} == {id(norm.weight), id(norm.bias)}
    assert group["peak"] == 0.1


def test_optimizers_that_do_not_exist_are_refused() -> None:
    phase, _ = make(TrainingSchedule(1, 1, 0.1, optimizer="lion"))
    with pytest.raises(ValueError, match="optimizer must be adam, adamw or sgd, not 'lion'"):
        make_optimizer(phase)


def test_rates_are_set_from_their_peaks_each_time() -> None:
    phase, _ = make(TrainingSchedule(1, 1, 1e-2, 4e-2))
    optimizer = make_optimizer(phase)
    for factor in (0.5, 0.25):
        set_rates(optimizer, factor)
        assert {group["lr"] for group in optimizer.param_groups} == {factor * 1e-2, factor * 4e-2}
