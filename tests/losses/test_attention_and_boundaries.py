from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netgraft.losses.activation_boundary import ActivationBoundary, boundary_disagreement
from netgraft.losses.attention_transfer import AttentionTransfer, attention_map
from netgraft.losses.gradient_attention import GradientAttention

Array = NDArray[np.float64]


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pairs_of_maps() -> tuple[list[Tensor], list[Tensor]]:
    """Two pairs: one of other widths, one of another size."""
    student = [noise(3, 4, 2, 5, seed=0), noise(3, 2, 3, 1, seed=1)]
    teacher = [noise(3, 7, 2, 5, seed=2), noise(3, 2, 3, 1, seed=3)]
    return student, teacher


# ---- attention of activations


def naive_map(features: Array, power: float, mean: bool = False) -> list[float]:
    """The map of one sample (C, H, W), position by position."""
    C, H, W = features.shape
    entries = []
    for h in range(H):
        for w in range(W):
            total = sum(abs(float(features[c, h, w])) ** power for c in range(C))
            entries.append(total / C if mean else total)
    length = math.sqrt(sum(entry**2 for entry in entries))
    return [entry / length for entry in entries]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_attention_map_equals_the_formula(power: float) -> None:
    features = noise(3, 4, 2, 5, seed=4)
    expected = [naive_map(sample, power) for sample in features.numpy()]
    np.testing.assert_allclose(attention_map(features, power).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_of_the_article(power: float) -> None:
    student, teacher = pairs_of_maps()
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for b in range(3):
            q_s, q_t = naive_map(s[b].numpy(), power), naive_map(t[b].numpy(), power)
            total += math.sqrt(sum((i - j) ** 2 for i, j in zip(q_s, q_t, strict=True))) / 2
    assert AttentionTransfer(power)(student, teacher).item() == pytest.approx(total / 3, rel=1e-12)


def test_attention_of_the_authors_code() -> None:
    student, teacher = pairs_of_maps()
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        squares = []
        for b in range(3):
            q_s, q_t = naive_map(s[b].numpy(), 2, mean=True), naive_map(t[b].numpy(), 2, mean=True)
            squares += [(i - j) ** 2 for i, j in zip(q_s, q_t, strict=True)]
        total += sum(squares) / len(squares)
    assert AttentionTransfer(form="code")(student, teacher).item() == pytest.approx(total, rel=1e-12)


def test_attention_by_hand() -> None:
    # sums of squares over the channels: (9 + 16, 0) and (0, 1), so maps (1, 0) and (0, 1)
    student = [torch.tensor([[[[3.0, 0.0]], [[-4.0, 0.0]]]])]
    teacher = [torch.tensor([[[[0.0, -1.0]]]])]
    assert attention_map(student[0]).tolist() == [[1, 0]]
    assert AttentionTransfer()(student, teacher).item() == pytest.approx(math.sqrt(2) / 2, rel=1e-6)
    assert AttentionTransfer()(student * 3, teacher * 3).item() == pytest.approx(3 * math.sqrt(2) / 2, rel=1e-6)
    assert AttentionTransfer(form="code")(student, teacher).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_scale_sign_and_order_of_channels_dont_count(form: str) -> None:
    [s, _], [t, _] = pairs_of_maps()
    loss = AttentionTransfer(form=form)
    scales = torch.tensor([1e-9, 3.0, -1e9], dtype=torch.float64)[:, None, None, None]
    changed = (s * scales).flip(1)
    torch.testing.assert_close(loss([changed], [t / scales]), loss([s], [t]), rtol=1e-12, atol=0)
    wider = torch.cat([s, s], dim=1)
    torch.testing.assert_close(loss([wider], [t]), loss([s], [t]), rtol=1e-12, atol=0)
    # positions do count
    assert abs(loss([s.flip(3)], [t]).item() - loss([s], [t]).item()) > 1e-3


@pytest.mark.parametrize("magnitude", [1e-10, 1e12])
def test_small_and_large_features_keep_their_map_in_float32(magnitude: float) -> None:
    # fourth powers of these leave float32's range
    features = noise(2, 3, 2, 2, seed=5)
    expected = [naive_map(sample, 4) for sample in features.numpy()]
    maps = attention_map((features * magnitude).float(), power=4)
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_attention_gradient_of_several_pairs_by_finite_differences(form: str) -> None:
    student, teacher = pairs_of_maps()
    loss = AttentionTransfer(form=form)
    inputs = [maps.requires_grad_() for maps in (*student, *teacher)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: loss([a, b], [c, d]), inputs)


def test_equal_maps_of_other_features_have_no_gradient() -> None:
    # the maps are equal bit by bit, the features are not
    t = noise(3, 4, 2, 5, seed=6, dtype=torch.float32)
    s = (-t).requires_grad_()
    loss = AttentionTransfer()([s], [t])
    [gradient] = torch.autograd.grad(loss, s)
    assert loss.item() == 0
    assert (gradient == 0).all()


def test_a_sample_without_features_has_no_attention() -> None:
    t = noise(2, 3, 2, 2, seed=7)
    s = torch.zeros_like(t, requires_grad=True)
    loss = AttentionTransfer()([s], [t])
    [gradient] = torch.autograd.grad(loss, s)
    assert (attention_map(s) == 0).all()
    assert loss.item() == pytest.approx(0.5, rel=1e-12)  # half the length of the teacher's map
    assert (gradient == 0).all()


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("magnitude", [1e-7, 1e-6, 1e-4])
def test_small_features_keep_the_gradient_in_float16s_range(form: str, magnitude: float) -> None:
    s = (magnitude * noise(1, 3, 2, 2, seed=10)).half().requires_grad_()
    t = noise(1, 3, 2, 2, seed=11)
    assert (s != 0).any()
    [gradient] = torch.autograd.grad(AttentionTransfer(form=form)([s], [t]), s)
    assert gradient.isfinite().all()


def test_pairs_that_cant_be_compared_are_refused() -> None:
    s, t = noise(2, 3, 4, 4, seed=8), noise(2, 5, 4, 4, seed=9)
    loss = AttentionTransfer()
    with pytest.raises(ValueError, match="as many maps of the student as of the teacher, at least one, not 2 and 1"):
        loss([s, s], [t])
    with pytest.raises(ValueError, match="at least one, not 0 and 0"):
        loss([], [])
    with pytest.raises(ValueError, match=r"differ in C alone, not \(2, 3, 4, 2\) and \(2, 5, 4, 4\)"):
        loss([s, s[..., :2]], [t, t])
    with pytest.raises(ValueError, match=r"differ in C alone, not \(2, 3, 2, 8\) and \(2, 5, 4, 4\)"):
        loss([s.reshape(2, 3, 2, 8)], [t])
    with pytest.raises(ValueError, match=r"an attention map needs features \(B, C, H, W\).* not \(2, 3, 16\)"):
        attention_map(s.flatten(2))


@pytest.mark.parametrize("power", [0.5, 0, -2.0, math.inf, math.nan])
def test_impossible_powers_are_refused(power: float) -> None:
    with pytest.raises(ValueError, match=f"power must be a finite number of at least 1, not {power}"):
        AttentionTransfer(power)
    with pytest.raises(ValueError, match="power"):
        attention_map(torch.ones(1, 1, 1, 1), power)


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="form must be 'paper' or 'code', not 'article'"):
        AttentionTransfer(form="article")


# ---- attention of gradients


def test_gradient_attention_equals_the_formula() -> None:
    s, t = noise(4, 3, 2, 5, seed=40), noise(4, 3, 2, 5, seed=41)
    total = 0.0
    for b in range(4):
        differences = (s[b] - t[b]).flatten().tolist()
        total += math.sqrt(sum(difference**2 for difference in differences)) / 2
    assert GradientAttention()(s, t).item() == pytest.approx(total / 4, rel=1e-12)


def test_gradient_attention_by_hand() -> None:
    s, t = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
    s[0, 0, 0] = torch.tensor([3.0, 4.0])
    assert GradientAttention()(s, t).item() == pytest.approx(5 / 2 / 2, rel=1e-6)


def test_the_weights_of_a_network_get_the_gradient_of_its_input_gradients() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    images, classes = noise(4, 2, 3, 3, seed=42), torch.tensor([0, 2, 1, 2])
    teacher = noise(4, 2, 3, 3, seed=43) / 10
    loss = GradientAttention()

    def attention() -> Tensor:
        inputs = images.clone().requires_grad_()
        classification = nn.functional.cross_entropy(network(inputs), classes, reduction="sum")
        [gradients] = torch.autograd.grad(classification, inputs, create_graph=True)
        return loss(gradients, teacher)

    step = 1e-6
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    for weight, gradient in zip(weights, torch.autograd.grad(attention(), weights), strict=True):
        assert gradient.abs().max() > 1e-4
        for index in range(0, weight.numel(), 3):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight.flatten()[index] += sign * step
                values.append(attention().item())
                with torch.no_grad():
                    weight.flatten()[index] -= sign * step
            difference = (values[0] - values[1]) / (2 * step)
            assert gradient.flatten()[index].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_weights_get_no_gradient_where_input_gradients_are_equal() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    inputs = noise(2, 1, 3, 3, seed=44, dtype=torch.float32).requires_grad_()
    [gradients] = torch.autograd.grad(network(inputs).square().sum(), inputs, create_graph=True)
    loss = GradientAttention()(gradients, gradients.detach().clone())
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, list(network.parameters())):
        assert (gradient == 0).all()


# ---- activation boundaries


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(1, 7), (5, 2, 3, 4)])
def test_boundary_loss_equals_the_formula(margin: float, shape: tuple[int, ...]) -> None:
    s, t = noise(*shape, seed=50), noise(*shape, seed=51)
    total = 0.0
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        rho = 1 if b > 0 else 0
        total += (rho * max(0.0, margin - a) + (1 - rho) * max(0.0, margin + a)) ** 2
    assert ActivationBoundary(margin)(s, t).item() == pytest.approx(total / shape[0], rel=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "cost"),
    [
        (0.25, 5.0, 0.75**2),
        (-1.0, 5.0, 4.0),
        (1.0, 5.0, 0.0),
        (-0.25, -5.0, 0.75**2),
        (1.0, -5.0, 4.0),
        (-9.0, -5.0, 0.0),
        (0.0, 0.0, 1.0),
        (-1.0, 0.0, 0.0),  # a response of 0 isn't active
        (1.0, 0.0, 4.0),
    ],
)
def test_boundary_loss_by_hand(student: float, teacher: float, cost: float) -> None:
    assert ActivationBoundary()(torch.tensor([[student]]), torch.tensor([[teacher]])).item() == cost


def test_only_the_side_of_the_teacher_counts() -> None:
    s, t = noise(4, 3, 2, 2, seed=52), noise(4, 3, 2, 2, seed=53)
    scales = noise(4, 3, 2, 2, seed=54).exp()
    assert ActivationBoundary()(s, t).item() == ActivationBoundary()(s, t * scales).item()
    # the two sides are treated alike
    assert ActivationBoundary()(s, t).item() == pytest.approx(ActivationBoundary()(-s, -t).item(), rel=1e-12)


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_boundary_loss_bounds_the_disagreement(margin: float) -> None:
    s, t = noise(6, 5, seed=55), noise(6, 5, seed=56)
    disagreement = boundary_disagreement(s, t).item()
    assert 0 < disagreement < 1
    assert ActivationBoundary(margin)(s, t).item() >= margin**2 * 5 * disagreement
    # the bound is reached by a student whose wrong neurons are inactive at 0 and whose right ones are beyond the margin
    s = torch.where(t > 0, torch.where(s > 0, 2 * margin, 0.0), -2 * margin)
    expected = margin**2 * 5 * boundary_disagreement(s, t).item()
    assert expected > 0
    assert ActivationBoundary(margin)(s, t).item() == pytest.approx(expected, rel=1e-6)


def test_disagreement_by_hand() -> None:
    s, t = torch.tensor([[1.0, -1.0, 0.0, 0.0]]), torch.tensor([[2.0, 3.0, -1.0, 4.0]])
    assert boundary_disagreement(s, t).item() == 0.5
    assert boundary_disagreement(t, t).item() == 0
    assert boundary_disagreement(t, -t).item() == 1
    assert boundary_disagreement(s.half(), t.bfloat16()).dtype == torch.float32


def test_disagreement_equals_the_formula() -> None:
    s, t = noise(4, 3, 2, 2, seed=57), noise(4, 3, 2, 2, seed=58)
    count = sum((a > 0) != (b > 0) for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
    assert boundary_disagreement(s, t).item() == pytest.approx(count / 48, rel=1e-6)
    with pytest.raises(
        ValueError, match=r"one shape \(B, ...\) that isn't empty, not \(4, 3, 2, 1\) and \(4, 3, 2, 2\)"
    ):
        boundary_disagreement(s[..., :1], t)


@pytest.mark.parametrize("margin", [0, -1.0, math.inf, math.nan])
def test_impossible_margins_are_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin must be a finite number above 0, not {margin}"):
        ActivationBoundary(margin)
