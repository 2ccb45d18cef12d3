"""Flow of the solution procedure against the article's formula, written as plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netgraft.losses.flow_of_solution import FlowOfSolution, flow_matrix
from tests.support.losses import noise

Array = NDArray[np.float64]


def pooled(sample: Array, height: int, width: int) -> Array:
    """The largest value of each block of a map (C, H, W) whose sides are multiples of the new ones."""
    high, wide = sample.shape[1] // height, sample.shape[2] // width
    out = np.empty((len(sample), height, width))
    for c, y, x in np.ndindex(out.shape):
        out[c, y, x] = sample[c, y * high : (y + 1) * high, x * wide : (x + 1) * wide].max()
    return out


def flow(first: Array, second: Array) -> Array:
    matrix = np.zeros((len(first), len(second)))
    for i, j in np.ndindex(matrix.shape):
        for y, x in np.ndindex(first.shape[1:]):
            matrix[i, j] += first[i, y, x] * second[j, y, x] / (first.shape[1] * first.shape[2])
    return matrix


def test_flow_matrix_by_hand() -> None:
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    matrix = flow_matrix(first.view(1, 2, 1, 2), second.view(1, 2, 1, 2))
    torch.testing.assert_close(matrix, torch.tensor([[[8.5, 11.5], [19.5, 26.5]]]))


@pytest.mark.parametrize(("start", "end"), [((4, 6), (2, 3)), ((2, 3), (4, 6)), ((4, 3), (2, 6)), ((2, 2), (2, 2))])
def test_flow_matrix_pools_the_larger_maps(start: tuple[int, int], end: tuple[int, int]) -> None:
    first, second = noise(2, 3, *start, seed=16), noise(2, 4, *end, seed=17)
    size = min(start[0], end[0]), min(start[1], end[1])
    expected = [flow(pooled(a, *size), pooled(b, *size)) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    np.testing.assert_allclose(flow_matrix(first, second).numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)


def stages(seed: int) -> list[tuple[Tensor, Tensor]]:
    return [
        (noise(3, 2, 4, 4, seed=seed), noise(3, 5, 2, 2, seed=seed + 1)),
        (noise(3, 5, 2, 2, seed=seed + 2), noise(3, 4, 2, 2, seed=seed + 3)),
    ]


def test_flow_of_solution_equals_the_formula_of_the_article() -> None:
    sums = means = 0.0
    for (s1, s2), (t1, t2) in zip(stages(20), stages(30), strict=True):
        for b in range(3):
            g_s = flow(pooled(s1[b].numpy(), 2, 2), s2[b].numpy())
            g_t = flow(pooled(t1[b].numpy(), 2, 2), t2[b].numpy())
            squares = sum(float(g_t[i, j] - g_s[i, j]) ** 2 for i, j in np.ndindex(*g_s.shape))
            sums += squares / 3
            means += squares / (3 * g_s.shape[0] * g_s.shape[1])
    assert FlowOfSolution()(stages(20), stages(30)).item() == pytest.approx(sums, rel=1e-12)
    assert FlowOfSolution("element")(stages(20), stages(30)).item() == pytest.approx(means, rel=1e-12)


def test_flow_of_solution_is_zero_for_the_teachers_own_maps_at_any_size() -> None:
    first, second = noise(2, 2, 2, 2, seed=40), noise(2, 3, 2, 2, seed=41)
    twice = [maps.repeat_interleave(2, 2).repeat_interleave(2, 3) for maps in (first, second)]
    loss = FlowOfSolution()([(twice[0], twice[1])], [(first, second)])
    assert loss.item() == pytest.approx(0, abs=1e-28)
    assert FlowOfSolution()([(first, second)], [(first.clone(), second.clone())]).item() == 0


@pytest.mark.parametrize("reduction", ["sample", "element"])
def test_gradient_of_flow_of_solution_by_finite_differences(reduction: str) -> None:
    tensors = [noise(2, 2, 4, 4, seed=50), *(noise(2, 2, 2, 2, seed=seed) for seed in (51, 52, 53))]

    def loss(s1: Tensor, s2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        return FlowOfSolution(reduction)([(s1, s2), (s2, s2)], [(t1, t2), (t2, t1)])

    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in tensors])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowOfSolution("sum"), "reduction must be 'sample' or 'element', not 'sum'"),
    ],
)
def test_wrong_hyperparameters_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_shapes_are_refused() -> None:
    small = torch.ones(2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"one batch, not of shapes \(2, 3, 2, 2\) and \(1, 3, 2, 2\)"):
        flow_matrix(small, small[:1])
    for one, other in ((small, small[0]), (small[0], small)):
        with pytest.raises(ValueError, match=r"a flow matrix needs maps \(B, C, H, W\) of one batch"):
            flow_matrix(one, other)
    with pytest.raises(ValueError, match=r"channels, not be \(2, 3, 3\) for the student and \(2, 3, 2\)"):
        FlowOfSolution()([(small, small)], [(small, small[:, :2])])
    for stages_of_student in ([], [(small, small), (small, small)]):
        with pytest.raises(ValueError, match=f"at least one, not {len(stages_of_student)} and 1"):
            FlowOfSolution()(stages_of_student, [(small, small)])
