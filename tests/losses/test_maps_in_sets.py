"""Neuron selectivity, factor transfer and flow of solution against their articles' formulas, written as plain loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netgraft.losses.factor_transfer import FactorTransfer
from netgraft.losses.flow_of_solution import FlowOfSolution, flow_matrix
from netgraft.losses.neuron_selectivity import NeuronSelectivity, directions

Array = NDArray[np.float64]

Kernel = Callable[[Array, Array], float]


KERNELS = {
    "linear": NeuronSelectivity("linear"),
    "degree 1": NeuronSelectivity(degree=1, constant=0.3),
    "degree 2": NeuronSelectivity(),
    "degree 2, constant": NeuronSelectivity(constant=0.7),
    "degree 3, constant": NeuronSelectivity(degree=3, constant=0.5),
    "gaussian": NeuronSelectivity("gaussian", degree=1),  # which only a polynomial has
}


def maps(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def patterns(sample: Array) -> list[Array]:
    return [channel.ravel() / np.sqrt((channel**2).sum()) for channel in sample]


def variance_of(student: Array, teacher: Array) -> float:
    """The mean squared distance over all ordered pairs of the union of both sets."""
    union = patterns(student) + patterns(teacher)
    return sum(float(((x - y) ** 2).sum()) for x in union for y in union) / len(union) ** 2


def kernel_of(loss: NeuronSelectivity, variance: float) -> Kernel:
    if loss.kernel == "linear":
        return lambda x, y: float((x * y).sum())
    if loss.kernel == "polynomial":
        return lambda x, y: float(((x * y).sum() + loss.constant) ** loss.degree)
    return lambda x, y: float(np.exp(-((x - y) ** 2).sum() / (2 * variance)))


def discrepancy(student: Array, teacher: Array, kernel: Kernel) -> float:
    s, t = patterns(student), patterns(teacher)
    within_student = sum(kernel(x, y) for x in s for y in s) / len(s) ** 2
    within_teacher = sum(kernel(x, y) for x in t for y in t) / len(t) ** 2
    across = sum(kernel(x, y) for x in s for y in t) / (len(s) * len(t))
    return within_student + within_teacher - 2 * across


def selectivity(loss: NeuronSelectivity, student: Array, teacher: Array) -> float:
    pairs = list(zip(student, teacher, strict=True))
    return sum(discrepancy(s, t, kernel_of(loss, variance_of(s, t))) for s, t in pairs) / len(pairs)


@pytest.mark.parametrize("size", [(1, 2), (1, 3), (3, 4)])  # both fewer and more positions than channels
@pytest.mark.parametrize("name", KERNELS)
def test_selectivity_equals_the_formula_of_the_article(name: str, size: tuple[int, int]) -> None:
    s, t = maps(3, 4, *size, seed=0), 5 * maps(3, 6, *size, seed=1) + 1
    expected = selectivity(KERNELS[name], s.numpy(), t.numpy())
    assert expected > 1e-3
    assert KERNELS[name](s, t).item() == pytest.approx(expected, rel=1e-11)


def test_selectivity_of_two_sets_by_hand() -> None:
    # one pattern along the first of two positions, against two orthogonal ones of which the first is the same
    s, t = torch.tensor([3.0, 0.0]).view(1, 1, 1, 2), torch.tensor([[2.0, 0.0], [0.0, 7.0]]).view(1, 2, 1, 2)
    assert NeuronSelectivity("linear")(s, t).item() == pytest.approx(1 + 2 / 4 - 2 * 1 / 2)
    assert NeuronSelectivity()(s, t).item() == pytest.approx(1 + 2 / 4 - 2 * 1 / 2)
    # with constant 1, the same direction counts (1 + 1)^2 and the orthogonal one 1
    assert NeuronSelectivity(constant=1)(s, t).item() == pytest.approx(4 + (2 * 4 + 2 * 1) / 4 - 2 * (4 + 1) / 2)
    # orthogonal unit vectors are sqrt(2) apart: 4 of the 9 ordered pairs in the union
    unlike = np.exp(-2 / (2 * 8 / 9))
    expected = 1 + (2 + 2 * unlike) / 4 - 2 * (1 + unlike) / 2
    assert NeuronSelectivity("gaussian")(s, t).item() == pytest.approx(expected)


@pytest.mark.parametrize("size", [(1, 2), (3, 3)])
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "gaussian"])
def test_gradient_of_selectivity_by_finite_differences(name: str, size: tuple[int, int]) -> None:
    s, t = maps(2, 3, *size, seed=2).requires_grad_(), maps(2, 4, *size, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(KERNELS[name], (s, t))


def test_gradient_of_the_gaussian_kernel_takes_the_variance_as_a_constant() -> None:
    s, t = maps(1, 3, 1, 3, seed=4).requires_grad_(), maps(1, 2, 1, 3, seed=5).requires_grad_()
    base = [tensor.detach().numpy()[0] for tensor in (s, t)]
    kernel = kernel_of(NeuronSelectivity("gaussian"), variance_of(*base))
    gradients = torch.autograd.grad(NeuronSelectivity("gaussian")(s, t), (s, t))
    for side, gradient in enumerate(gradients):
        for index in np.ndindex(base[side].shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in base]
                moved[side][index] += step
                values.append(discrepancy(moved[0], moved[1], kernel))
            assert gradient[0][index].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_selectivity_is_one_of_sets_of_directions(name: str) -> None:
    loss, s, t = KERNELS[name], maps(2, 5, 3, 3, seed=6), maps(2, 7, 3, 3, seed=7)
    scales = torch.linspace(0.01, 100, 5, dtype=torch.float64)[:, None, None]
    changed = loss((s * scales)[:, [4, 2, 0, 1, 3]], t[:, [6, 5, 4, 3, 2, 1, 0]])
    torch.testing.assert_close(changed, loss(s, t), rtol=1e-11, atol=0)
    torch.testing.assert_close(loss(t, s), loss(s, t), rtol=1e-11, atol=0)


@pytest.mark.parametrize("size", [(1, 2), (3, 3)])
@pytest.mark.parametrize("name", KERNELS)
def test_selectivity_is_zero_for_equal_sets_even_if_one_holds_everything_twice(
    name: str, size: tuple[int, int]
) -> None:
    t = maps(2, 5, *size, seed=8)
    assert KERNELS[name](t.clone(), t).item() == pytest.approx(0, abs=1e-14)
    assert KERNELS[name](t.repeat(1, 2, 1, 1), t).item() == pytest.approx(0, abs=1e-14)
    # a set of other proportions is another one
    assert KERNELS[name](t[:, [0, 0, 1, 2, 3, 4]], t).item() > 1e-4


@pytest.mark.parametrize("name", KERNELS)
def test_equal_patterns_leave_no_rounding_noise_to_blow_up(name: str) -> None:
    s = maps(2, 1, 4, 4, seed=9, dtype=torch.float32).expand(2, 32, 4, 4).clone().requires_grad_()
    loss = KERNELS[name](s, (3 * s.detach())[:, :16])
    [gradient] = torch.autograd.grad(loss, s)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert gradient.abs().max() < 0.1


@pytest.mark.parametrize("kernel", ["linear", "polynomial", "gaussian"])
def test_a_dead_channel_gets_no_gradient(kernel: str) -> None:
    s, t = maps(1, 3, 2, 2, seed=10), maps(1, 3, 2, 2, seed=11)
    s[0, 1] = 0
    [gradient] = torch.autograd.grad(NeuronSelectivity(kernel)(s.requires_grad_(), t), s)
    assert (gradient[0, 1] == 0).all()
    assert (gradient[0, [0, 2]] != 0).any()


def test_directions_have_length_one_or_zero() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]])
    torch.testing.assert_close(directions(vectors), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]))


def distance_of_factors(student: Array, teacher: Array) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s_norm, t_norm = np.sqrt((s**2).sum()), np.sqrt((t**2).sum())
        for index in np.ndindex(s.shape):
            total += abs(t[index] / t_norm - s[index] / s_norm)
    return total


def test_factor_transfer_equals_the_formula_of_the_article() -> None:
    s, t = maps(4, 3, 2, 5, seed=12), 7 * maps(4, 3, 2, 5, seed=13)
    expected = distance_of_factors(s.numpy(), t.numpy())
    assert FactorTransfer()(s, t).item() == pytest.approx(expected / 4, rel=1e-13)
    assert FactorTransfer("element")(s, t).item() == pytest.approx(expected / (4 * 3 * 2 * 5), rel=1e-13)


def test_factor_transfer_by_hand() -> None:
    s, t = torch.tensor([[6.0, 8.0], [0.0, 1.0]]).view(2, 2, 1, 1), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert FactorTransfer()(s, t.view(2, 2, 1, 1)).item() == pytest.approx((0.2 + 0.2) / 2)
    assert FactorTransfer("element")(s, t.view(2, 2, 1, 1)).item() == pytest.approx((0.2 + 0.2) / 4)


@pytest.mark.parametrize("reduction", ["sample", "element"])
def test_factor_transfer_compares_directions(reduction: str) -> None:
    loss, s, t = FactorTransfer(reduction), maps(3, 2, 2, 2, seed=14), maps(3, 2, 2, 2, seed=15)
    assert torch.autograd.gradcheck(loss, (s.clone().requires_grad_(), t.clone().requires_grad_()))
    scales = torch.tensor([0.1, 3, 50], dtype=torch.float64).view(3, 1, 1, 1)
    torch.testing.assert_close(loss(s * scales, t / scales), loss(s, t), rtol=1e-12, atol=0)
    assert loss(t.clone(), t).item() == 0


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
    first, second = maps(2, 3, *start, seed=16), maps(2, 4, *end, seed=17)
    size = min(start[0], end[0]), min(start[1], end[1])
    expected = [flow(pooled(a, *size), pooled(b, *size)) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    np.testing.assert_allclose(flow_matrix(first, second).numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)


def stages(seed: int) -> list[tuple[Tensor, Tensor]]:
    return [
        (maps(3, 2, 4, 4, seed=seed), maps(3, 5, 2, 2, seed=seed + 1)),
        (maps(3, 5, 2, 2, seed=seed + 2), maps(3, 4, 2, 2, seed=seed + 3)),
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
    first, second = maps(2, 2, 2, 2, seed=40), maps(2, 3, 2, 2, seed=41)
    twice = [maps.repeat_interleave(2, 2).repeat_interleave(2, 3) for maps in (first, second)]
    loss = FlowOfSolution()([(twice[0], twice[1])], [(first, second)])
    assert loss.item() == pytest.approx(0, abs=1e-28)
    assert FlowOfSolution()([(first, second)], [(first.clone(), second.clone())]).item() == 0


@pytest.mark.parametrize("reduction", ["sample", "element"])
def test_gradient_of_flow_of_solution_by_finite_differences(reduction: str) -> None:
    tensors = [maps(2, 2, 4, 4, seed=50), *(maps(2, 2, 2, 2, seed=seed) for seed in (51, 52, 53))]

    def loss(s1: Tensor, s2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
        return FlowOfSolution(reduction)([(s1, s2), (s2, s2)], [(t1, t2), (t2, t1)])

    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in tensors])


def flow_from_start_to_end(reduction: str) -> Callable[[Tensor, Tensor], Tensor]:
    loss = FlowOfSolution(reduction)
    return lambda student, teacher: loss([(student, student)], [(teacher, teacher)])


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **KERNELS,
    **{f"factors, {reduction}": FactorTransfer(reduction) for reduction in ("sample", "element")},
    **{f"flow, {reduction}": flow_from_start_to_end(reduction) for reduction in ("sample", "element")},
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_every_kind_of_map_gives_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    shape = (1, 3, 2, 4)
    kinds = [torch.zeros(shape), torch.full(shape, 0.3), torch.full(shape, -20.0), maps(*shape, seed=60)]
    for student, teacher in itertools.product(kinds, kinds):
        s, t = student.to(dtype).requires_grad_(), teacher.to(dtype).requires_grad_()
        loss = LOSSES[name](s, t)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for tensor in (loss, *torch.autograd.grad(loss, (s, t))):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_and_half_precisions_are_computed_in_the_wider_one(name: str) -> None:
    s, t = maps(4, 3, 2, 4, seed=61, dtype=torch.bfloat16), maps(4, 3, 2, 4, seed=62)
    assert LOSSES[name](s, t).dtype == torch.float64
    wide = LOSSES[name](s.double(), t.float().double())
    torch.testing.assert_close(LOSSES[name](s, t.float()).double(), wide, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOSSES[name](s, t.float()), LOSSES[name](s.float(), t.float()))
        torch.testing.assert_close(LOSSES[name](s, t.float()).double(), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_twice_over_changes_nothing(name: str) -> None:
    s, t = maps(3, 3, 2, 4, seed=63), maps(3, 3, 2, 4, seed=64)
    twice = LOSSES[name](s.repeat(2, 1, 1, 1), t.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, LOSSES[name](s, t), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeuronSelectivity("rbf"), "kernel must be 'linear', 'polynomial' or 'gaussian', not 'rbf'"),
        (lambda: NeuronSelectivity(degree=0), "degree must be an integer of at least 1, not 0"),
        (lambda: NeuronSelectivity(constant=-1.0), "constant must be a finite number of at least 0, not -1.0"),
        (lambda: NeuronSelectivity(constant=float("nan")), "constant must be a finite number of at least 0, not nan"),
        (lambda: FactorTransfer("mean"), "reduction must be 'sample' or 'element', not 'mean'"),
        (lambda: FlowOfSolution("sum"), "reduction must be 'sample' or 'element', not 'sum'"),
    ],
)
def test_wrong_hyperparameters_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_shapes_are_refused() -> None:
    small, large, flat = torch.ones(2, 3, 2, 2), torch.ones(2, 3, 4, 4), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"agree in B, H and W, not of shapes \(2, 3, 2, 2\) and \(2, 3, 4, 4\)"):
        NeuronSelectivity()(small, large)
    with pytest.raises(ValueError, match="maps"):
        NeuronSelectivity()(flat, flat)
    with pytest.raises(ValueError, match=r"factors of one shape \(B, m, H, W\), not \(2, 3, 2, 2\) and \(2, 3, 4, 4\)"):
        FactorTransfer()(small, large)
    with pytest.raises(ValueError, match=r"one batch, not of shapes \(2, 3, 2, 2\) and \(1, 3, 2, 2\)"):
        flow_matrix(small, small[:1])
    with pytest.raises(ValueError, match=r"channels, not be \(2, 3, 3\) for the student and \(2, 3, 2\)"):
        FlowOfSolution()([(small, small)], [(small, small[:, :2])])
    for stages_of_student in ([], [(small, small), (small, small)]):
        with pytest.raises(ValueError, match=f"at least one, not {len(stages_of_student)} and 1"):
            FlowOfSolution()(stages_of_student, [(small, small)])
