"""Widths step by step and evenly, against what a person would do by hand."""

from __future__ import annotations

import numpy as np
import pytest

from netgraft.deriving.allocation import ALLOCATIONS
from netgraft.deriving.axes import Atom
from netgraft.deriving.choice import Limit, Options
from netgraft.errors import RequestError
from tests.deriving.test_choice import Chain, error_of, random_options


def test_greedy_takes_the_cheapest_step_each_time() -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        options = random_options(4, 6, generator)
        cost = Chain([each.atom for each in options], list(generator.uniform(1, 30, 5)))
        most = float(generator.uniform(0.2, 0.8)) * cost({})

        widths = {each.atom: each.widths[-1] for each in options}
        while cost(widths) > most:
            ratios = {}
            for each in options:
                at = each.widths.index(widths[each.atom])
                if at:
                    narrower = {**widths, each.atom: each.widths[at - 1]}
                    gain = cost(widths) - cost(narrower)
                    ratios[each.atom] = ((each.errors[at - 1] - each.errors[at]) / gain, each.widths[at - 1])
            atom = min(ratios, key=lambda atom: ratios[atom][0])
            widths[atom] = ratios[atom][1]

        assert ALLOCATIONS["greedy"](options, [Limit("macs", cost, most)]) == widths


def test_the_knapsack_is_nowhere_worse_than_greedy_and_often_better() -> None:
    generator = np.random.default_rng(2)
    errors = []
    for _ in range(20):
        options = random_options(5, 6, generator)
        limit_cost = Chain([each.atom for each in options], list(generator.uniform(1, 30, 6)))
        limits = [Limit("macs", limit_cost, 0.4 * limit_cost({}))]
        errors.append([error_of(ALLOCATIONS[name](options, limits), options) for name in ("knapsack", "greedy")])
    ratio = np.array([knapsack / greedy for knapsack, greedy in errors])
    assert np.median(ratio) < 1
    assert (ratio < 1 - 1e-9).sum() > 3 * (ratio > 1 + 1e-9).sum()


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.81])
def test_uniform_keeps_the_largest_part_that_meets_the_limit(fraction: float) -> None:
    atoms = [Atom(64), Atom(128), Atom(32)]
    options = [Options.unscored(atom, range(8, atom.size, 8)) for atom in atoms]
    block = Options.unscored(Atom(1), (0,))
    cost = Chain(atoms, [3.0, 2.0, 1.0, 5.0])
    most = fraction * cost({})

    chosen = ALLOCATIONS["uniform"]([*options, block], [Limit("macs", cost, most)])

    met = []
    for part in np.linspace(0, 1, 2001):
        widths = {each.atom: min(each.widths, key=lambda width: abs(width - part * each.atom.size)) for each in options}
        if cost(widths) <= most:
            met.append(cost(widths))
    assert cost(chosen) == max(met)
    # blocks are there or not: an even part of one means nothing
    assert block.atom not in chosen


@pytest.mark.parametrize("name", list(ALLOCATIONS))
def test_what_can_not_be_met_is_refused(name: str) -> None:
    options = [Options(Atom(32), (8, 16, 24, 32), (0.3, 0.2, 0.1, 0.0)) for _ in range(2)]
    cost = Chain([each.atom for each in options], [1.0] * 3)
    with pytest.raises(RequestError, match=r"^a budget of 167 macs can't be met; the least that can is 168$"):
        ALLOCATIONS[name](options, [Limit("macs", cost, 167)])
    assert ALLOCATIONS[name](options, [Limit("macs", cost, 168)]) == {each.atom: 8 for each in options}


@pytest.mark.parametrize("name", list(ALLOCATIONS))
def test_all_limits_are_met(name: str) -> None:
    options = random_options(4, 6, np.random.default_rng(3))
    atoms = [each.atom for each in options]
    costs = [Chain(atoms, [1.0, 9.0, 1.0, 9.0, 1.0]), Chain(atoms, [9.0, 1.0, 5.0, 1.0, 9.0])]
    limits = [Limit("it", cost, fraction * cost({})) for cost, fraction in zip(costs, (0.5, 0.3), strict=True)]
    chosen = ALLOCATIONS[name](options, limits)
    assert all(limit.cost(chosen) <= limit.most for limit in limits)
    assert any(limit.cost(chosen) > 0.4 * limit.most for limit in limits)
