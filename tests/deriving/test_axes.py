"""Dimensions made of atoms: products and sums, cut and found to be one."""

from __future__ import annotations

import pytest
import torch

from netgraft.deriving.axes import Atom, Axis, concatenated, cut_out, divided, merged, unify


def only_atom(axis: Axis) -> Atom:
    (atom,) = axis.atoms()
    return atom


def test_a_flattened_axis_keeps_the_rows_of_a_tensor_that_is_reshaped_in_the_same_way() -> None:
    channels, positions = Axis.of(6), Axis.of(4)
    kept = {only_atom(channels): torch.tensor([0, 2, 5])}
    values = torch.arange(24).reshape(6, 4)

    flat = merged([channels, positions])

    assert torch.equal(values.flatten()[flat.indices(kept)], values[[0, 2, 5]].flatten())
    assert flat.kept_size(lambda atom: len(kept[atom]) if atom in kept else atom.size) == 12


def test_an_axis_that_is_divided_selects_from_its_factors() -> None:
    axis = Axis.of(12)
    outer, inner = divided(axis, [3, 4])
    kept = {only_atom(outer): torch.tensor([0, 2]), only_atom(inner): torch.tensor([1, 3])}

    assert torch.equal(axis.indices(kept), torch.tensor([1, 3, 9, 11]))


def test_an_axis_that_is_concatenated_selects_from_its_parts() -> None:
    first, second = Axis.of(3), Axis.of(4)
    whole = concatenated([first, second, first])
    kept = {only_atom(first): torch.tensor([1])}

    assert torch.equal(whole.indices(kept), torch.tensor([1, 3, 4, 5, 6, 8]))


def test_axes_that_were_found_to_be_one_select_alike_whatever_they_were_divided_into() -> None:
    flat, grouped = Axis.of(12), merged([Axis.of(3), Axis.of(4)])
    unify(flat, grouped)

    assert flat.segments == grouped.segments
    assert [atom.size for atom in flat.atoms()] == [3, 4]


def test_a_part_that_is_cut_out_is_one_with_what_it_meets() -> None:
    whole, half = Axis.of(10), Axis.of(4)
    unify(cut_out(whole, 0, 4), half)
    kept = {only_atom(half): torch.tensor([3])}

    assert torch.equal(whole.indices(kept), torch.tensor([3, 4, 5, 6, 7, 8, 9]))


def test_parts_that_do_not_match_are_fixed() -> None:
    thirds, halves = merged([Axis.of(2), Axis.of(3)]), merged([Axis.of(3), Axis.of(2)])
    unify(thirds, halves)

    assert all(atom.fixed for axis in (thirds, halves) for atom in axis.atoms())


def test_axes_of_different_sizes_are_never_one() -> None:
    with pytest.raises(ValueError, match="axes of 3 and 4 indices can't be the same"):
        unify(Axis.of(3), Axis.of(4))


def test_what_is_fixed_fixes_what_it_is_made_of_and_what_it_was_found_to_be() -> None:
    axis, other = Axis.of(12), Axis.of(12)
    unify(axis, other)
    outer, inner = divided(axis, [3, 4])
    other.fix("because")

    assert [atom.fixed for atom in (*outer.atoms(), *inner.atoms())] == ["because", "because"]


@pytest.mark.parametrize(
    "axis", [Axis.of(5), merged([Axis.of(5), Axis.of(3)]), merged([Axis.of(2), Axis.of(5), Axis.of(3)])]
)
def test_positions_are_where_an_index_stands(axis: Axis) -> None:
    atom = next(atom for atom in axis.atoms() if atom.size == 5)
    positions = axis.positions_of(atom)

    for index in range(5):
        assert torch.equal(positions[index], axis.indices({atom: torch.tensor([index])}))


def test_positions_in_a_sum_are_counted_from_its_front() -> None:
    first, second = Axis.of(3), Axis.of(2)
    whole = concatenated([second, first, second])

    assert torch.equal(whole.positions_of(only_atom(second)), torch.tensor([[0, 5], [1, 6]]))
