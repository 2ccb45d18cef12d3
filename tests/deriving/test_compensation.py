"""What makes up for channels that are gone, against least squares of the full inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netgraft.deriving.axes import Axis, concatenated, merged
from netgraft.deriving.compensation import (
    DAMPING,
    add_to_output,
    compensated,
    compensated_by_precision,
    precision,
)
from netgraft.deriving.selection import Reader
from tests.deriving.test_selection import correlated, moments


def predicted(x: np.ndarray, stay: list[int], *, constant: bool) -> tuple[np.ndarray, np.ndarray]:
    """What all features are by those that stay: matrix (S, F) and constant (F,), by least squares with damping."""
    mean = x.mean(0) if constant else np.zeros(x.shape[1])
    centred = x - mean
    damping = DAMPING * (centred**2).mean()
    rows = np.concatenate([centred[:, stay], np.sqrt(len(x) * damping) * np.eye(len(stay))])
    targets = np.concatenate([centred, np.zeros((len(stay), x.shape[1]))])
    matrix = np.linalg.lstsq(rows, targets, rcond=None)[0]
    # those that stay are themselves
    matrix[:, stay] = np.eye(len(stay))
    return matrix, mean - mean[stay] @ matrix


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(*, bias: bool) -> None:
    torch.manual_seed(0)
    layer, rows, axis = nn.Linear(7, 4, bias=bias), correlated(300, 7, 1), Axis.of(7)
    kept = {axis.atoms()[0]: torch.tensor([0, 2, 5, 6])}
    matrix, constant = predicted(rows.double().numpy(), [0, 2, 5, 6], constant=bias)
    weight = layer.weight.detach().double().numpy()

    found = compensated(Reader("it", layer, axis, moments(rows), None), kept)

    np.testing.assert_allclose(found.weight[:, [0, 2, 5, 6]], weight @ matrix.T, atol=1e-5)
    assert not found.weight[:, [1, 3, 4]].any()
    if bias:
        assert found.shift is not None
        np.testing.assert_allclose(found.shift, weight @ constant, atol=1e-5)
    else:
        assert found.shift is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["mixed", "copies", "dead"])
def test_few_channels_of_a_concatenation(*, bias: bool, kind: str) -> None:
    torch.manual_seed(0)
    layer, rows, few, many = nn.Conv2d(12, 4, 1, bias=bias), correlated(300, 12, 1), Axis.of(3), Axis.of(9)
    if kind == "copies":
        rows[:, 1] = rows[:, 7]
    elif kind == "dead":
        rows[:, [0, 2]] = 0.0
    stay = [1, *range(3, 12)] if kind == "dead" else [2, *range(3, 12)]
    kept = {few.atoms()[0]: torch.tensor(stay[:1])}
    matrix, constant = predicted(rows.double().numpy(), stay, constant=bias)
    weight = layer.weight.detach().double().flatten(1).numpy()
    reader = Reader("it", layer, concatenated([few, many]), moments(rows), None)

    found = compensated_by_precision(reader, precision(reader), kept)

    np.testing.assert_allclose(found.weight.flatten(1)[:, stay], weight @ matrix.T, atol=1e-4)
    assert not found.weight[:, [at for at in range(3) if at not in stay]].any()
    if bias:
        assert found.shift is not None
        np.testing.assert_allclose(found.shift, weight @ constant, atol=1e-4)


def test_a_convolution_makes_up_in_each_tap() -> None:
    torch.manual_seed(0)
    layer, rows, axis = nn.Conv2d(5, 4, (3, 2), bias=True), correlated(300, 5, 1), Axis.of(5)
    matrix, constant = predicted(rows.double().numpy(), [1, 3], constant=True)
    weight = layer.weight.detach().double().numpy()

    found = compensated(Reader("it", layer, axis, moments(rows), None), {axis.atoms()[0]: torch.tensor([1, 3])})

    assert found.shift is not None
    np.testing.assert_allclose(found.weight[:, [1, 3]], np.einsum("oihw,si->oshw", weight, matrix), atol=1e-5)
    np.testing.assert_allclose(found.shift, np.einsum("oihw,i->o", weight, constant), atol=1e-5)


@pytest.mark.parametrize("whole_groups", [True, False])
def test_groups_make_up_for_their_own_channels(*, whole_groups: bool) -> None:
    torch.manual_seed(0)
    groups, inside = Axis.of(3), Axis.of(4)
    layer, rows = nn.Conv2d(12, 6, 3, groups=3), correlated(300, 12, 1)
    stay = torch.tensor([1, 2])
    kept = {(groups if whole_groups else inside).atoms()[0]: stay}
    weight, x = layer.weight.detach().double().numpy(), rows.double().numpy()

    found = compensated(Reader("it", layer, merged([groups, inside]), moments(rows), None), kept)

    assert found.shift is not None
    centred = x - x.mean(0)
    left = np.isin(np.arange(12) // 4 if whole_groups else np.arange(12) % 4, stay)
    damping = DAMPING * (centred**2).mean()
    for group in range(3):
        at = np.arange(4 * group, 4 * group + 4)
        mine = left[at]
        matrix = np.zeros((4, 4))
        if mine.any():
            of_stay = centred[:, at[mine]]
            rows_of = np.concatenate([of_stay, np.sqrt(len(x) * damping) * np.eye(mine.sum())])
            targets = np.concatenate([centred[:, at], np.zeros((mine.sum(), 4))])
            matrix[mine] = np.linalg.lstsq(rows_of, targets, rcond=None)[0]
            matrix[np.ix_(mine, mine)] = np.eye(mine.sum())
        constant = x.mean(0)[at] - x.mean(0)[at] @ matrix
        outputs = slice(2 * group, 2 * group + 2)
        expected = np.einsum("oihw,si->oshw", weight[outputs], matrix)
        np.testing.assert_allclose(found.weight[outputs], expected, atol=1e-5)
        np.testing.assert_allclose(found.shift[outputs], np.einsum("oihw,i->o", weight[outputs], constant), atol=1e-5)


@torch.no_grad()
def test_a_constant_goes_to_the_bias_or_off_the_mean_of_the_norm() -> None:
    x, shift = torch.randn(4, 3, 5, 5), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    norm = nn.BatchNorm2d(3).eval()
    for layer in (nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, bias=False)):
        expected = norm(layer(x) + shift.float()[:, None, None])
        add_to_output(layer, norm, shift)
        torch.testing.assert_close(norm(layer(x)), expected)


@pytest.mark.parametrize("rows", [torch.zeros(50, 4), torch.full((50, 4), 3.0), torch.randn(1, 4)])
def test_inputs_that_never_change_are_made_up_for_by_the_constant(rows: Tensor) -> None:
    torch.manual_seed(0)
    axis, layer = Axis.of(4), nn.Linear(4, 3)
    found = compensated(Reader("it", layer, axis, moments(rows), None), {axis.atoms()[0]: torch.tensor([2])})

    assert found.shift is not None
    got = rows.double() @ found.weight.T + found.shift
    torch.testing.assert_close(got, rows.double() @ layer.weight.detach().double().T, rtol=0, atol=1e-6)
