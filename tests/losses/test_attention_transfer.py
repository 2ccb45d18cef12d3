"""Attention transfer against the article's equation and the authors' code, written as plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from netgraft.losses.attention_transfer import AttentionTransfer, attention_map
from tests.support.losses import noise

Array = NDArray[np.float64]


def pairs_of_maps() -> tuple[list[Tensor], list[Tensor]]:
    """Two pairs: one of other widths, one of another size."""
    student = [noise(3, 4, 2, 5, seed=0), noise(3, 2, 3, 1, seed=1)]
    teacher = [noise(3, 7, 2, 5, seed=2), noise(3, 2, 3, 1, seed=3)]
    return student, teacher


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
    for one, other in ((s, t.flatten(2)), (s.flatten(2), t)):
        with pytest.raises(ValueError, match="differ in C alone"):
            loss([one], [other])
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
