"""What holds for all losses."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from netgraft.losses.activation_boundary import ActivationBoundary
from netgraft.losses.attention_transfer import AttentionTransfer
from netgraft.losses.factor_transfer import FactorTransfer
from netgraft.losses.flow_of_solution import FlowOfSolution
from netgraft.losses.gradient_attention import GradientAttention
from netgraft.losses.hint import Hint
from netgraft.losses.soft_targets import SoftTargets
from tests.support.losses import KERNELS, noise

HALF = [torch.float16, torch.bfloat16]


MAPS = (3, 4, 2, 5)


class OnePair(nn.Module):
    """Gives attention transfer the signature of the other losses."""

    def __init__(self, power: float = 2.0, form: str = "paper") -> None:
        super().__init__()
        self.loss = AttentionTransfer(power, form)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss([student], [teacher])


LOSSES = {
    "soft targets": (SoftTargets(), (3, 6)),
    "hint": (Hint(), MAPS),
    "hint, element": (Hint("element"), MAPS),
    "attention": (OnePair(), MAPS),
    "attention, power 1": (OnePair(power=1), MAPS),
    "attention, power 3.5": (OnePair(power=3.5), MAPS),
    "attention, code": (OnePair(form="code"), MAPS),
    "gradient attention": (GradientAttention(), MAPS),
    "boundary": (ActivationBoundary(), MAPS),
}


each_loss = pytest.mark.parametrize(("loss", "shape"), LOSSES.values(), ids=LOSSES.keys())


@each_loss
def test_gradient_by_finite_differences(loss: nn.Module, shape: tuple[int, ...]) -> None:
    s, t = noise(*shape, seed=10).requires_grad_(), noise(*shape, seed=11).requires_grad_()
    assert torch.autograd.gradcheck(loss, (s, t))


@each_loss
def test_is_a_mean_over_the_batch(loss: nn.Module, shape: tuple[int, ...]) -> None:
    s, t = noise(*shape, seed=12), 2 * noise(*shape, seed=13)
    one_by_one = [loss(s[b : b + 1], t[b : b + 1]).item() for b in range(len(s))]
    assert len(set(one_by_one)) == len(s)
    assert loss(s, t).item() == pytest.approx(sum(one_by_one) / len(s), rel=1e-12)


@each_loss
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "values", [(0, 0), (0, 2), (2, 0), (2, 2), (2, -3), (1e-7, 0), (0, 1e-7), (1e-7, 2), (3e4, -3e4)]
)
def test_constant_inputs_give_nothing_infinite(
    loss: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, batch: int, values: tuple[float, float]
) -> None:
    s, t = (torch.full((batch, *shape[1:]), value, dtype=dtype, requires_grad=True) for value in values)
    value = loss(s, t)
    gradients = torch.autograd.grad(value, (s, t), allow_unused=True)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.shape == ()
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@each_loss
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scale", [1, 1000])  # the squares of the larger one leave float16's range
def test_half_precision_is_computed_in_float32(
    loss: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, scale: float
) -> None:
    s, t = scale * noise(*shape, seed=14, dtype=dtype), scale * noise(*shape, seed=15, dtype=dtype)
    value = loss(s.requires_grad_(), t)
    [gradient] = torch.autograd.grad(value, s)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(s.double(), t.double()).item(), rel=1e-5)
    assert gradient.isfinite().all()
    assert loss(s, t.double()).item() == pytest.approx(loss(s.double(), t.double()).item(), rel=1e-5)


@each_loss
def test_the_students_own_target_costs_nothing(loss: nn.Module, shape: tuple[int, ...]) -> None:
    t = noise(*shape, seed=16)
    if isinstance(loss, ActivationBoundary):
        t = t + t.sign()  # beyond the margin
    s = t.clone().requires_grad_()
    value = loss(s, t)
    [gradient] = torch.autograd.grad(value, s)
    assert value.item() == 0
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


@each_loss
@pytest.mark.parametrize("change", ["batch", "size", "axes", "empty"])
def test_other_shapes_are_refused(loss: nn.Module, shape: tuple[int, ...], change: str) -> None:
    s, t = noise(*shape, seed=17), noise(*shape, seed=18)
    s, t = {
        "batch": (s[:1], t),
        "size": (s[..., :1], t),
        "axes": (s[0, ..., 0], t[0, ..., 0]),
        "empty": (s[:0], t[:0]),
    }[change]
    if change == "axes" and isinstance(loss, Hint | ActivationBoundary):
        s, t = s[:, 0], t[:, 0]
    with pytest.raises(ValueError, match=r"needs? .*" + re.escape(str(tuple(s.shape)))):
        loss(s, t)


def flow_from_start_to_end(reduction: str) -> Callable[[Tensor, Tensor], Tensor]:
    loss = FlowOfSolution(reduction)
    return lambda student, teacher: loss([(student, student)], [(teacher, teacher)])


MAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **KERNELS,
    **{f"factors, {reduction}": FactorTransfer(reduction) for reduction in ("sample", "element")},
    **{f"flow, {reduction}": flow_from_start_to_end(reduction) for reduction in ("sample", "element")},
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAP_LOSSES)
def test_every_kind_of_map_gives_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    shape = (1, 3, 2, 4)
    kinds = [torch.zeros(shape), torch.full(shape, 0.3), torch.full(shape, -20.0), noise(*shape, seed=60)]
    for student, teacher in itertools.product(kinds, kinds):
        s, t = student.to(dtype).requires_grad_(), teacher.to(dtype).requires_grad_()
        loss = MAP_LOSSES[name](s, t)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for tensor in (loss, *torch.autograd.grad(loss, (s, t))):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_mixed_and_half_precisions_are_computed_in_the_wider_one(name: str) -> None:
    s, t = noise(4, 3, 2, 4, seed=61, dtype=torch.bfloat16), noise(4, 3, 2, 4, seed=62)
    assert MAP_LOSSES[name](s, t).dtype == torch.float64
    wide = MAP_LOSSES[name](s.double(), t.float().double())
    torch.testing.assert_close(MAP_LOSSES[name](s, t.float()).double(), wide, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(MAP_LOSSES[name](s, t.float()), MAP_LOSSES[name](s.float(), t.float()))
        torch.testing.assert_close(MAP_LOSSES[name](s, t.float()).double(), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_a_batch_twice_over_changes_nothing(name: str) -> None:
    s, t = noise(3, 3, 2, 4, seed=63), noise(3, 3, 2, 4, seed=64)
    twice = MAP_LOSSES[name](s.repeat(2, 1, 1, 1), t.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, MAP_LOSSES[name](s, t), rtol=1e-12, atol=0)
