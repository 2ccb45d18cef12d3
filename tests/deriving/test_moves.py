"""What other widths change, against costs that are added up anew."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from netgraft.deriving.axes import Atom
from netgraft.deriving.choice import Limit, Options, choose_widths
from netgraft.deriving.costs import Cost, Part, Widths
from netgraft.deriving.moves import Moves


def entangled(atoms: list[Atom], generator: np.random.Generator) -> Cost:
    """A cost of parts that depend on one to four places each, some of them on the same."""

    def part(some: list[Atom], factor: float) -> Part:
        def price(widths: Widths) -> float:
            sizes = [widths.get(atom, atom.size) for atom in some]
            return factor * min(math.prod(sizes), 40 * sum(sizes))

        return Part(some, price)

    picked = [generator.choice(len(atoms), generator.integers(1, 5), replace=False) for _ in range(2 * len(atoms))]
    return Cost(part([atoms[at] for at in some], float(generator.uniform(1, 9))) for some in picked)


@pytest.mark.parametrize("seed", range(4))
def test_changes_are_those_of_costs_that_are_added_up_anew(seed: int) -> None:
    generator = np.random.default_rng(seed)
    atoms = [Atom(8 * count) for count in generator.integers(2, 7, 7)]
    widths = [range(8, atom.size + 1, 8) for atom in atoms]
    # beside a place whose width is fixed
    fixed = Atom(64)
    costs = [entangled([*atoms, fixed], generator).given({fixed: 24}) for _ in range(2)]
    chosen = [int(generator.integers(len(options))) for options in widths]
    moves = Moves(atoms, widths, costs, chosen)

    def spent(numbers: list[int]) -> np.ndarray:
        at = {atom: options[number] for atom, options, number in zip(atoms, widths, numbers, strict=True)}
        return np.array([cost(at) for cost in costs])

    def other(numbers: dict[int, int]) -> np.ndarray:
        return spent([numbers.get(place, number) for place, number in enumerate(chosen)]) - spent(chosen)

    for _ in range(6):
        assert moves.chosen == chosen
        assert moves.widths == {
            atom: options[number] for atom, options, number in zip(atoms, widths, chosen, strict=True)
        }
        for place, options in enumerate(widths):
            expected = np.stack([other({place: number}) for number in range(len(options))], axis=1)
            np.testing.assert_allclose(moves.changes[place], expected, atol=1e-9)
        for first, second in itertools.permutations(range(len(atoms)), 2):
            numbers = [int(generator.integers(len(widths[place]))) for place in (first, second)]
            together = moves.change(first, numbers[0], second, numbers[1])
            expected = other({first: numbers[0], second: numbers[1]})
            np.testing.assert_allclose(together, expected, atol=1e-9)
            if second not in moves.neighbours(first):
                changes = [
                    moves.changes[place][:, number] for place, number in zip((first, second), numbers, strict=True)
                ]
                np.testing.assert_allclose(sum(changes), expected, atol=1e-9)
        two = generator.choice(len(atoms), 2, replace=False)
        moved = {int(place): int(generator.integers(len(widths[place]))) for place in two}
        moves.move(moved)
        chosen = [moved.get(place, number) for place, number in enumerate(chosen)]


@pytest.mark.parametrize("seed", range(6))
def test_no_raising_of_one_place_that_lowering_another_pays_for_is_left(seed: int) -> None:
    generator = np.random.default_rng(seed)
    atoms = [Atom(8 * count) for count in generator.integers(2, 7, 6)]
    options = []
    for atom in atoms:
        widths = tuple(range(8, atom.size + 1, 8))
        # not always less error where more is kept
        options.append(Options(atom, widths, (*map(float, 10 ** generator.uniform(-4, 0, len(widths) - 1)), 0.0)))
    costs = [entangled(atoms, generator) for _ in range(2)]
    limits = [Limit("it", cost, part * cost({})) for cost, part in zip(costs, (0.5, 0.6), strict=True)]
    chosen = choose_widths(options, limits)

    def error(widths: Widths) -> float:
        return sum(each.errors[each.widths.index(widths[each.atom])] for each in options)

    def meets(widths: Widths) -> bool:
        return all(limit.cost(widths) <= limit.most for limit in limits)

    assert meets(chosen)
    for each in options:
        at = each.widths.index(chosen[each.atom])
        if at + 1 == len(each.widths):
            continue
        raised = {**chosen, each.atom: each.widths[at + 1]}
        others = [
            {**raised, other.atom: width}
            for other in options
            if other is not each
            for width in other.widths
            if width < chosen[other.atom]
        ]
        better = [widths for widths in (raised, *others) if meets(widths) and error(widths) < error(chosen) - 1e-6]
        assert not better
