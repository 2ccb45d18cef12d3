"""Presets of RepDistiller's program: its whole loss written anew in NumPy, in value and in gradient.

Source: Tian, Krishnan and Isola, ICLR 2020, https://github.com/HobbitLong/RepDistiller, ``distiller_zoo`` for the terms
and ``scripts/run_cifar_distill.sh`` for their weights. Features are those behind a method's connectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from netgraft.methods.method import Budget
from netgraft.methods.registry import METHODS, choose, find
from netgraft.plan import StepOutputs
from tests.support.method_pairs import cross_entropy, pairing

Array = NDArray[np.float64]

B, K = 4, 10

LABELS = [5, 0, 3, 3]


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def huber(difference: Array) -> Array:
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def hint(student: Sequence[Array], teacher: Sequence[Array]) -> float:
    """``HintLoss``: nn.MSELoss."""
    [s], [t] = student, teacher
    return float(np.mean((s - t) ** 2))


def attention(student: Sequence[Array], teacher: Sequence[Array]) -> float:
    """``Attention``: sums the layers' mean squares."""

    def maps(f: Array) -> Array:
        return unit((f**2).mean(1).reshape(len(f), -1))

    return float(sum(np.mean((maps(s) - maps(t)) ** 2) for s, t in zip(student, teacher, strict=True)))


def selectivity(student: Sequence[Array], teacher: Sequence[Array]) -> float:
    """``NSTLoss``: sums the layers; with the teacher's own kernel, a constant that the program leaves out."""

    def kernel(x: Array, y: Array) -> float:
        x, y = (unit(f.reshape(len(f), f.shape[1], -1)) for f in (x, y))
        return float(np.mean(np.einsum("bip,bjp->bij", x, y) ** 2))

    pairs = zip(student, teacher, strict=True)
    return sum(kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in pairs)


def relations(student: Sequence[Array], teacher: Sequence[Array]) -> float:
    """``RKDLoss(w_d=25, w_a=50)``: smooth L1 over all pairs and all triplets."""
    [s], [t] = student, teacher

    def distances(e: Array) -> Array:
        lengths = np.linalg.norm(e[:, None] - e[None], axis=2)
        return lengths / lengths[lengths > 0].mean()

    def angles(e: Array) -> Array:
        differences = e[None] - e[:, None]
        lengths = np.linalg.norm(differences, axis=2, keepdims=True)
        directions = differences / np.where(lengths > 0, lengths, 1)
        return np.einsum("iaf,ibf->iab", directions, directions)

    by_distance, by_angle = huber(distances(s) - distances(t)).mean(), huber(angles(s) - angles(t)).mean()
    return float(25 * by_distance + 50 * by_angle)


def factors(student: Sequence[Array], teacher: Sequence[Array]) -> float:
    """``FactorTransfer(p1=2, p2=1)``."""

    def factor(f: Array) -> Array:
        return unit((f**2).mean(1).reshape(len(f), -1))

    [s], [t] = student, teacher
    return float(np.mean(np.abs(factor(s) - factor(t))))


MAPS = [(B, 6, 4, 4), (B, 5, 2, 2)]

TERMS: dict[str, tuple[float, Callable[[Sequence[Array], Sequence[Array]], float], Sequence[tuple[int, ...]]]] = {
    "fitnets": (100.0, hint, MAPS[:1]),
    "at": (1000.0, attention, MAPS),
    "nst": (50.0, selectivity, MAPS),
    "rkd": (1.0, relations, [(B, 7)]),
    "ft": (200.0, factors, MAPS[:1]),
}
"""The weight in the program's script, its term, and shapes to try."""


def slope(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Gradient by central differences."""
    found = np.zeros(at.shape)
    for place in np.ndindex(*at.shape):
        moved = np.zeros(at.shape)
        moved[place] = step
        found[place] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


@pytest.mark.parametrize("name", TERMS)
def test_the_whole_loss_is_repdistillers(name: str) -> None:
    weight, term, shapes = TERMS[name]
    generator = np.random.default_rng(0)
    student, teacher = ([generator.normal(size=shape) for shape in shapes] for _ in range(2))
    logits, target = generator.normal(size=(B, K)), generator.normal(size=(B, K))

    def loss(z: Array, features: Sequence[Array]) -> float:
        return cross_entropy(z, LABELS) + weight * term(features, teacher)

    method: Any = choose(name, "repdistiller", Budget(10, 10)).method
    leaves = [torch.from_numpy(value).requires_grad_() for value in (logits, *student)]
    outputs = StepOutputs(
        leaves[0],
        torch.from_numpy(target),
        torch.tensor(LABELS),
        tuple(leaves[1:]),
        tuple(torch.from_numpy(value) for value in teacher),
    )
    total: Tensor = sum(method.objective(pairing("none")).terms(outputs).values())
    assert float(total.detach()) == pytest.approx(loss(logits, student), rel=1e-6)

    expected = [slope(lambda z: loss(z, student), logits)]
    for place, feature in enumerate(student):

        def moved(f: Array, place: int = place) -> float:
            return loss(logits, [*student[:place], f, *student[place + 1 :]])

        expected.append(slope(moved, feature))
    for gradient, by_hand in zip(torch.autograd.grad(total, leaves), expected, strict=True):
        np.testing.assert_allclose(gradient.numpy(), by_hand, rtol=1e-4, atol=1e-5 * np.abs(by_hand).max())
        assert np.abs(by_hand).max() > 1e-3


def boundaries(student: Sequence[Array], teacher: Sequence[Array]) -> float:
    """``ABLoss``: what is on the wrong side of the margin, squared; the last of n layers weighs 1, i-th 2^(i-n+1)."""
    total = 0.0
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        off = (s + 1) ** 2 * ((s > -1) & (t <= 0))
        on = (s - 1) ** 2 * ((s <= 1) & (t > 0))
        total += 2 ** (i - len(student) + 1) * np.abs(off + on).sum() / len(s) / 1000 * 3
    return float(total)


@pytest.mark.parametrize("shapes", [MAPS[:1], MAPS, [(B, 3, 4, 4), *MAPS]], ids=len)
def test_the_loss_of_boundaries_is_repdistillers(shapes: Sequence[tuple[int, ...]]) -> None:
    generator = np.random.default_rng(1)
    student, teacher = ([generator.normal(size=shape) for shape in shapes] for _ in range(2))
    teacher[0][:, 0] = 0  # not active
    method: Any = choose("ab", "repdistiller", Budget(10, 10)).method
    [phase] = method.objective(pairing("none")).before
    leaves = [torch.from_numpy(value).requires_grad_() for value in student]
    outputs = StepOutputs(leaves[-1], None, None, tuple(leaves), tuple(map(torch.from_numpy, teacher)))
    total: Tensor = sum(phase.objective(outputs).values())
    assert float(total.detach()) == pytest.approx(boundaries(student, teacher), rel=1e-12)
    for place, gradient in enumerate(torch.autograd.grad(total, leaves)):

        def moved(f: Array, place: int = place) -> float:
            return boundaries([*student[:place], f, *student[place + 1 :]], teacher)

        by_hand = slope(moved, student[place])
        np.testing.assert_allclose(gradient.numpy(), by_hand, rtol=1e-4, atol=1e-7)
        assert np.abs(by_hand).max() > 1e-4


def test_behind_the_boundaries_there_is_cross_entropy_alone() -> None:
    logits, target = np.random.default_rng(2).normal(size=(2, B, K))
    method: Any = choose("ab", "repdistiller", Budget(10, 10)).method
    outputs = StepOutputs(torch.from_numpy(logits), torch.from_numpy(target), torch.tensor(LABELS))
    objective = method.objective(pairing("none"))
    assert not objective.features
    [total] = objective.terms(outputs).values()
    assert float(total) == pytest.approx(cross_entropy(logits, LABELS), rel=1e-6)


def test_every_preset_of_repdistiller_has_a_twin() -> None:
    assert {name for name in METHODS if "repdistiller" in find(name).presets} == {*TERMS, "ab"}
