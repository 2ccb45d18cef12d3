"""The order in which channels go, against brute force: every choice tried, every weight solved again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netgraft.deriving.axes import Atom, Axis, concatenated, merged
from netgraft.deriving.places import Place
from netgraft.deriving.selection import DAMPING, Reader, kept_channels, removal_in_order, surgeon_removal
from netgraft.deriving.statistics import Moments


def moments(rows: Tensor) -> Moments:
    found = Moments.empty(rows.shape[1])
    found.add(rows)
    return found


def correlated(count: int, features: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    return torch.randn(count, features, generator=generator) @ mixing + torch.randn(features, generator=generator)


def brute_force(width: int, readers: list[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]) -> list[int]:
    """Remove one after another what raises the readers' errors least, all weights that are left solved again.

    Args:
        width: How many channels.
        readers: Inputs (R, F), weight (O, F), whose columns belong to which channel (F,), -1 to none of them; and
            whether there is a constant.
    """
    gone: list[int] = []
    while len(gone) < width:
        losses = {
            channel: sum(least_error(*reader, gone=[*gone, channel]) for reader in readers)
            for channel in range(width)
            if channel not in gone
        }
        gone.append(min(losses, key=lambda channel: losses[channel]))
    return gone


def least_error(x: np.ndarray, weight: np.ndarray, owner: np.ndarray, constant: bool, *, gone: list[int]) -> float:
    """The mean squared change of the outputs, with damping, in parts of their energy: by plain least squares."""
    if constant:
        x = x - x.mean(0)
    count = len(x)
    energy = ((x @ weight.T) ** 2).sum() / count
    damping = DAMPING * (x**2).sum() / x.size
    rows = np.concatenate([x, np.sqrt(count * damping) * np.eye(x.shape[1])])
    stay = ~np.isin(owner, gone)
    target = rows @ weight.T
    if not stay.any():
        return float((target**2).sum() / count / energy)
    solution = np.linalg.lstsq(rows[:, stay], target, rcond=None)[0]
    return float(((rows[:, stay] @ solution - target) ** 2).sum() / count / energy)


def reader_of(layer: nn.Conv2d | nn.Linear, inputs: Axis, rows: Tensor) -> Reader:
    return Reader("layer", layer, inputs, moments(rows), None)


def numbers(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bias", [True, False])
def test_one_reader(seed: int, *, bias: bool) -> None:
    torch.manual_seed(seed)
    axis, layer, rows = Axis.of(6), nn.Linear(6, 4, bias=bias), correlated(300, 6, seed)
    place = Place("it", axis.atoms()[0], (), ())
    x, weight = numbers(rows, layer.weight)

    order = surgeon_removal(place, [reader_of(layer, axis, rows)]).order

    assert order.tolist() == brute_force(6, [(x, weight, np.arange(6), bias)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("given", [None, [4, 0, 3, 5, 1, 2]])
def test_losses_add_up_to_what_is_lost_by_all_that_are_gone(seed: int, given: list[int] | None) -> None:
    torch.manual_seed(seed)
    axis, layer, rows = Axis.of(6), nn.Linear(6, 4), correlated(300, 6, seed)
    place = Place("it", axis.atoms()[0], (), ())
    x, weight = numbers(rows, layer.weight)
    readers = [reader_of(layer, axis, rows)]

    removal = (
        surgeon_removal(place, readers) if given is None else removal_in_order(torch.tensor(given), place, readers)
    )

    order = removal.order.tolist()
    assert given is None or order == given
    lost = [least_error(x, weight, np.arange(6), True, gone=order[:count]) for count in range(1, 7)]
    assert removal.losses.cumsum(0).tolist() == pytest.approx(lost, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_several_readers_one_of_which_has_other_inputs_too(seed: int) -> None:
    torch.manual_seed(seed)
    axis, other = Axis.of(5), Axis.of(3)
    narrow, wide = nn.Linear(5, 4), nn.Conv2d(8, 2, 1, bias=False)
    rows, more = correlated(200, 5, seed), correlated(200, 8, seed + 50)
    place = Place("it", axis.atoms()[0], (), ())
    x1, x2, w1, w2 = numbers(rows, more, narrow.weight, wide.weight.flatten(1))
    readers = [reader_of(narrow, axis, rows), reader_of(wide, concatenated([other, axis]), more)]

    order = surgeon_removal(place, readers).order

    owner = np.array([-1, -1, -1, 0, 1, 2, 3, 4])
    assert order.tolist() == brute_force(5, [(x1, w1, np.arange(5), True), (x2, w2, owner, False)])


@pytest.mark.parametrize("seed", range(4))
def test_one_reader_of_several_places_one_after_another(seed: int) -> None:
    torch.manual_seed(seed)
    axes = [Axis.of(4), Axis.of(3), Axis.of(5)]
    layer, rows = nn.Conv2d(12, 4, 1), correlated(300, 12, seed)
    reader = reader_of(layer, concatenated(axes), rows)
    x, weight = numbers(rows, layer.weight.flatten(1))

    for start, axis in zip((0, 4, 7, 0), (*axes, axes[0]), strict=True):
        order = surgeon_removal(Place("it", axis.atoms()[0], (), ()), [reader]).order
        owner = np.full(12, -1)
        owner[start : start + axis.size] = np.arange(axis.size)
        assert order.tolist() == brute_force(axis.size, [(x, weight, owner, True)])


@pytest.mark.parametrize("seed", range(4))
def test_several_columns_a_channel(seed: int) -> None:
    torch.manual_seed(seed)
    channels, layer, rows = Axis.of(4), nn.Linear(12, 5), correlated(300, 12, seed)
    place = Place("it", channels.atoms()[0], (), ())
    x, weight = numbers(rows, layer.weight)

    order = surgeon_removal(place, [reader_of(layer, merged([channels, Axis.of(3)]), rows)]).order

    assert order.tolist() == brute_force(4, [(x, weight, np.repeat(np.arange(4), 3), True)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("whole_groups", [True, False])
def test_groups(seed: int, *, whole_groups: bool) -> None:
    torch.manual_seed(seed)
    groups, inside = Axis.of(3), Axis.of(4)
    layer, rows = nn.Conv2d(12, 6, 1, groups=3), correlated(300, 12, seed)
    axis = merged([groups, inside])
    # of whole groups nothing is left that could make up for them; of what is within each all groups together decide
    chosen = groups if whole_groups else inside
    place = Place("it", chosen.atoms()[0], (), ())
    x, weight = numbers(rows, layer.weight.flatten(1))
    owner = np.arange(12) // 4 if whole_groups else np.arange(12) % 4
    # the least squares of a grouped layer are those of each group, with the damping and energy of the whole
    block = np.zeros((300 * 3, 12))
    dense = np.zeros((6, 12))
    centred = x - x.mean(0)
    for group in range(3):
        at = slice(4 * group, 4 * group + 4)
        block[300 * group : 300 * group + 300, at] = np.sqrt(3) * centred[:, at]
        dense[2 * group : 2 * group + 2, at] = weight[2 * group : 2 * group + 2]

    order = surgeon_removal(place, [reader_of(layer, axis, rows)]).order

    assert order.tolist() == brute_force(len(order), [(block, dense, owner, False)])


def test_many_channels() -> None:
    torch.manual_seed(0)
    axis, other = Axis.of(20), Axis.of(7)
    layer, rows = nn.Linear(27, 9), correlated(500, 27, 3)
    place = Place("it", axis.atoms()[0], (), ())
    x, weight = numbers(rows, layer.weight)

    order = surgeon_removal(place, [reader_of(layer, concatenated([axis, other]), rows)]).order

    assert order.tolist() == brute_force(20, [(x, weight, np.array([*range(20), *([-1] * 7)]), True)])


def test_rows_and_weights_are_one_anothers_inverse() -> None:
    layer = nn.Conv2d(12, 6, (2, 3), groups=3)
    reader = reader_of(layer, Axis.of(12), torch.randn(20, 12))
    rows = reader.rows()

    assert rows.shape == (12, 2 * 6)
    assert torch.equal(reader.weight_of(rows).float(), layer.weight)
    # input 5 is the second of the second group, whose outputs are 2 and 3
    assert torch.equal(rows[5].float(), layer.weight[2:4, 1].flatten())


def test_copies_and_dead_channels_go_first_and_leave_numbers_finite() -> None:
    rows = correlated(300, 6, 0)
    rows[:, 2] = 0
    rows[:, 4] = 7.5
    rows[:, 5] = rows[:, 1]
    axis = Axis.of(6)
    torch.manual_seed(0)
    order = surgeon_removal(Place("it", axis.atoms()[0], (), ()), [reader_of(nn.Linear(6, 4), axis, rows)]).order

    assert set(order[:2].tolist()) == {2, 4}
    assert int(order[2]) in {1, 5}


@pytest.mark.parametrize("rows", [torch.zeros(50, 4), torch.full((50, 4), 3.0), torch.randn(1, 4)])
def test_inputs_that_never_change_give_some_order(rows: Tensor) -> None:
    axis = Axis.of(4)
    order = surgeon_removal(Place("it", axis.atoms()[0], (), ()), [reader_of(nn.Linear(4, 3), axis, rows)]).order

    assert sorted(order.tolist()) == [0, 1, 2, 3]


def test_what_stays_would_go_last() -> None:
    assert kept_channels(torch.tensor([3, 0, 4, 1, 2]), 2).tolist() == [1, 2]
    assert Atom(5).size == len(kept_channels(torch.tensor([3, 0, 4, 1, 2]), 5))
