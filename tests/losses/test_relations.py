"""Relational losses against hand-computed triangles and a brute force over all pairs and triplets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netgraft.losses.relations import RelationalAngle, RelationalDistance

Array = NDArray[np.float64]


LOSSES = [RelationalDistance(), RelationalAngle()]

BOTH = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


RIGHT_ANGLED = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)

EQUILATERAL = torch.eye(3, dtype=torch.float64)


def embeddings(batch: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


def length(vector: Array) -> float:
    return math.sqrt(sum(float(x) ** 2 for x in vector))


def relative_distances(points: Array) -> Array:
    matrix = np.zeros((len(points), len(points)))
    for i, j in np.ndindex(matrix.shape):
        matrix[i, j] = length(points[i] - points[j])
    positive = [d for d in matrix.ravel() if d > 0]
    return matrix / (sum(positive) / len(positive))


def cosine(points: Array, i: int, j: int, k: int) -> float:
    """The cosine of the angle at j."""
    a, b = points[i] - points[j], points[k] - points[j]
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / (length(a) * length(b))


def distance_loss(student: Array, teacher: Array) -> float:
    s, t = relative_distances(student), relative_distances(teacher)
    return sum(huber(float(s[i, j] - t[i, j])) for i, j in np.ndindex(*s.shape)) / len(student) ** 2


def angle_loss(student: Array, teacher: Array) -> float:
    """Over triplets of three different samples, as in the article; divided by the number of all triplets."""
    triplets = itertools.permutations(range(len(student)), 3)
    return sum(huber(cosine(student, *ijk) - cosine(teacher, *ijk)) for ijk in triplets) / len(student) ** 3


@pytest.mark.parametrize(("batch", "student_width", "teacher_width"), [(3, 2, 2), (7, 4, 9), (6, 1, 3)])
def test_equal_the_formulas_of_the_article(batch: int, student_width: int, teacher_width: int) -> None:
    s, t = embeddings(batch, student_width, 0), 3 * embeddings(batch, teacher_width, 1)
    s[0] += 30  # an outlier brings both parts of the Huber loss into play
    assert RelationalDistance()(s, t).item() == pytest.approx(distance_loss(s.numpy(), t.numpy()), rel=1e-12)
    assert RelationalAngle()(s, t).item() == pytest.approx(angle_loss(s.numpy(), t.numpy()), rel=1e-12)


def test_distances_of_a_right_angled_triangle_by_hand() -> None:
    # 3, 4 and 5 are 0.75, 1 and 1.25 of their mean; all sides of the other triangle are 1; six of nine pairs differ
    loss = RelationalDistance()(EQUILATERAL, RIGHT_ANGLED)
    assert loss.item() == pytest.approx(2 * (0.25**2 / 2 + 0 + 0.25**2 / 2) / 9, rel=1e-12)


def test_angles_of_a_right_angled_triangle_by_hand() -> None:
    # cosines 0, 3/5 and 4/5 against 1/2 each, in both orders of the sides
    loss = RelationalAngle()(EQUILATERAL, RIGHT_ANGLED)
    assert loss.item() == pytest.approx(2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27, rel=1e-12)


def test_opposite_angles_are_in_the_linear_part_of_the_huber_loss() -> None:
    on_a_line = torch.tensor([[0.0], [1.0], [2.0]])
    # another point in the middle: two cosines change between -1 and 1
    assert RelationalAngle()(on_a_line, on_a_line[[1, 0, 2]]).item() == pytest.approx(2 * (1.5 + 1.5) / 27)


def test_coinciding_samples_do_not_count_towards_the_mean_distance() -> None:
    # distances 0, 1, 1: the mean of the positive ones is 1, and one pair of three is 1 too close
    s = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    assert RelationalDistance()(s, EQUILATERAL).item() == pytest.approx(2 * 0.5 / 9, rel=1e-12)


def test_angles_at_coinciding_samples_count_as_right() -> None:
    s = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    # against 1/2: cosine 0 at the two that coincide; 1 at the third
    assert RelationalAngle()(s, EQUILATERAL).item() == pytest.approx(2 * 3 * 0.5**2 / 2 / 27, rel=1e-12)


@BOTH
def test_gradient_by_finite_differences(loss: nn.Module) -> None:
    s, t = embeddings(5, 3, 2).requires_grad_(), embeddings(5, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, (s, t))


@BOTH
def test_moving_turning_and_scaling_either_side_changes_nothing(loss: nn.Module) -> None:
    s, t = embeddings(6, 4, 4), embeddings(6, 5, 5)
    expected = loss(s, t)
    assert expected > 1e-3
    for side, width in ((0, 4), (1, 5)):
        rotation = torch.linalg.qr(embeddings(width, width, 6)).Q
        moved = [s, t]
        moved[side] = 0.01 * moved[side] @ rotation + embeddings(1, width, 7)
        torch.testing.assert_close(loss(*moved), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss(10 * s + 1, t), loss(s, t), rtol=1e-10, atol=0)


@BOTH
def test_order_of_the_samples_does_not_matter_but_must_be_the_same(loss: nn.Module) -> None:
    s, t, order = embeddings(6, 4, 8), embeddings(6, 4, 9), [3, 5, 0, 1, 4, 2]
    torch.testing.assert_close(loss(s[order], t[order]), loss(s, t), rtol=1e-12, atol=0)
    assert loss(t[order], t) > 1e-3


@BOTH
def test_is_zero_for_the_teachers_own_embeddings(loss: nn.Module) -> None:
    t = embeddings(6, 4, 10)
    assert loss(t.clone(), t).item() == 0


@BOTH
def test_far_from_the_origin_nothing_is_lost(loss: nn.Module) -> None:
    # every difference is exact in float32, inner products are not
    s, t = (((64 * embeddings(8, 5, seed)).round() / 64).float() for seed in (11, 12))
    assert torch.equal(loss(s + 4096, t), loss(s, t))


@BOTH
@pytest.mark.parametrize("batch", [1, 2])
def test_too_few_samples_give_zero_and_no_gradient(loss: nn.Module, batch: int) -> None:
    s, t = embeddings(batch, 3, 13, torch.float32).requires_grad_(), embeddings(batch, 5, 14, torch.float32)
    value = loss(s, t)
    [gradient] = torch.autograd.grad(value, s)
    assert value.item() == 0
    assert (gradient == 0).all()


@BOTH
def test_equal_embeddings_give_no_gradient(loss: nn.Module) -> None:
    s, t = torch.full((4, 3), 0.1).requires_grad_(), embeddings(4, 5, 15, torch.float32)
    value = loss(s, t)
    [gradient] = torch.autograd.grad(value, s)
    assert value.item() > 0
    assert (gradient == 0).all()
    assert loss(s, torch.zeros(4, 5)).item() == 0


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_kind_of_embedding_gives_finite_values_and_gradients(loss: nn.Module, dtype: torch.dtype) -> None:
    pair = embeddings(4, 3, 16)
    pair[1] = pair[0]
    for batch in (1, 2, 4):
        kinds = [torch.zeros(4, 3), torch.full((4, 3), -200.0), 300 * embeddings(4, 3, 17), pair]
        for student, teacher in itertools.product(kinds, kinds):
            s, t = student[:batch].to(dtype).requires_grad_(), teacher[:batch].to(dtype).requires_grad_()
            value = loss(s, t)
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            for tensor in (value, *torch.autograd.grad(value, (s, t))):
                assert tensor.isfinite().all()


@BOTH
def test_mixed_and_half_precisions_are_computed_in_the_wider_one(loss: nn.Module) -> None:
    s, t = embeddings(6, 4, 18, torch.bfloat16), embeddings(6, 5, 19)
    assert loss(s, t).dtype == torch.float64
    wide = loss(s.double(), t.float().double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(s, t.float()).double(), wide, rtol=1e-5, atol=0)


@BOTH
def test_wrong_shapes_are_refused(loss: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"of one batch, not of shapes \(3, 4\) and \(2, 4\)"):
        loss(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"must be embeddings \(B, D\)"):
        loss(torch.ones(3, 4, 1), torch.ones(3, 4, 1))
    for one, other in (((3, 4), (3, 4, 1)), ((3, 4, 1), (3, 4))):
        with pytest.raises(ValueError, match=r"must be embeddings \(B, D\)"):
            loss(torch.ones(one), torch.ones(other))
