"""Widths for a budget, against all combinations."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from netgraft.deriving import choice as module
from netgraft.deriving.axes import Atom
from netgraft.deriving.choice import Limit, Options, choose_widths, narrow_step_by_step
from netgraft.deriving.costs import Cost, Part, Widths
from netgraft.errors import RequestError


class Chain(Cost):
    """Layers one behind the other: each costs its input times its output width."""

    def __init__(self, atoms: list[Atom], factors: list[float], *, powers: float = 1) -> None:
        def layer(factor: float, *pair: Atom | int) -> Part:
            def price(widths: Widths) -> float:
                sizes = [end if isinstance(end, int) else widths.get(end, end.size) for end in pair]
                return factor * math.prod(sizes) ** powers

            return Part((end for end in pair if isinstance(end, Atom)), price)

        ends: list[Atom | int] = [3, *atoms, 10]
        super().__init__(layer(factor, *pair) for factor, pair in zip(factors, itertools.pairwise(ends), strict=True))


def random_options(count: int, widths: int, generator: np.random.Generator) -> list[Options]:
    options = []
    for _ in range(count):
        errors = np.sort(10.0 ** generator.uniform(-4, 0, widths - 1))[::-1]
        options.append(Options(Atom(8 * widths), tuple(range(8, 8 * widths + 1, 8)), (*map(float, errors), 0.0)))
    return options


def error_of(widths: Widths, places: list[Options]) -> float:
    return sum(place.errors[place.widths.index(widths[place.atom])] for place in places)


def brute_force(options: list[Options], limits: list[Limit]) -> float:
    best = np.inf
    for widths in itertools.product(*(each.widths for each in options)):
        chosen = {each.atom: width for each, width in zip(options, widths, strict=True)}
        if all(limit.cost(chosen) <= limit.most for limit in limits):
            best = min(best, error_of(chosen, options))
    return float(best)


@pytest.mark.parametrize("fraction", [0.25, 0.4, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("two_limits", [False, True])
def test_the_choice_is_the_best_of_all_or_all_but_as_good(fraction: float, *, two_limits: bool) -> None:
    generator = np.random.default_rng(int(100 * fraction))
    ratios = []
    for _ in range(8):
        options = random_options(4, 5, generator)
        atoms = [each.atom for each in options]
        costs = [Chain(atoms, list(generator.uniform(1, 30, 5))), Chain(atoms, [1.0] * 5)]
        limits = [Limit("it", cost, fraction * cost({})) for cost in (costs if two_limits else costs[:1])]
        chosen = choose_widths(options, limits)

        assert all(limit.cost(chosen) <= limit.most for limit in limits)
        ratios.append(error_of(chosen, options) / brute_force(options, limits))

    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) == pytest.approx(1)
    assert max(ratios) < 1.3


def test_of_widths_that_are_as_good_those_stay_that_the_budget_buys() -> None:
    options = [Options(Atom(64), tuple(range(8, 65, 8)), (0.0,) * 8) for _ in range(4)]
    cost = Chain([each.atom for each in options], [1.0] * 5)
    limit = Limit("it", cost, 0.6 * cost({}))
    chosen = choose_widths(options, [limit])

    assert limit.cost(chosen) <= limit.most
    wider = [{**chosen, atom: width + 8} for atom, width in chosen.items() if width < atom.size]
    assert all(limit.cost(each) > limit.most for each in wider)


def test_a_price_that_is_linear_gives_the_very_best() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        options = random_options(4, 5, generator)
        weights = generator.uniform(1, 9, 4)

        def alone(weight: float, atom: Atom) -> Part:
            return Part([atom], lambda widths: weight * widths.get(atom, atom.size))

        cost = Cost(alone(weight, each.atom) for weight, each in zip(weights, options, strict=True))

        limits = [Limit("it", cost, 0.5 * cost({}))]
        assert error_of(choose_widths(options, limits), options) == pytest.approx(brute_force(options, limits))


def test_what_cannot_be_met_is_refused_with_the_least_that_can() -> None:
    options = random_options(2, 4, np.random.default_rng(0))
    cost = Chain([each.atom for each in options], [1.0] * 3)
    least = cost({each.atom: 8 for each in options})

    assert cost(choose_widths(options, [Limit("macs", cost, least)])) == least
    with pytest.raises(RequestError, match=r"^a budget of 167 macs can't be met; the least that can is 168$"):
        choose_widths(options, [Limit("macs", cost, least - 1)])


def test_nothing_to_choose_from_meets_nothing() -> None:
    with pytest.raises(RequestError, match="a budget of 5 macs can't be met; the least that can is 30"):
        choose_widths([], [Limit("macs", Chain([], [1.0]), 5)])


def test_nothing_to_choose_from_is_chosen_where_that_is_cheap_enough() -> None:
    assert choose_widths([], [Limit("macs", Chain([], [1.0]), 30)]) == {}
    assert narrow_step_by_step([], [Limit("macs", Chain([], [1.0]), 30)]) == {}


def test_many_places_of_many_widths_are_chosen_in_time() -> None:
    generator = np.random.default_rng(0)
    options = random_options(40, 24, generator)
    cost = Chain([each.atom for each in options], list(generator.uniform(1, 30, 41)))
    started = time.perf_counter()
    chosen = choose_widths(options, [Limit("macs", cost, 0.5 * cost({}))])

    assert cost(chosen) <= 0.5 * cost({})
    assert time.perf_counter() - started < 300


def plateaus(count: int, widths: int, generator: np.random.Generator) -> list[Options]:
    """Places whose narrow widths are all as bad, as those of an inverted residual are."""
    options = []
    for each in random_options(count, widths, generator):
        errors = np.array(each.errors)
        errors[: widths // 2] = 3 * errors.max()
        options.append(Options(each.atom, each.widths, tuple(map(float, errors))))
    return options


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.75, 0.87, 0.95])
@pytest.mark.parametrize("powers", [1, 3])
def test_the_choice_is_no_worse_than_narrowing_step_by_step(fraction: float, powers: int) -> None:
    generator = np.random.default_rng(int(100 * fraction))
    for _ in range(6):
        options = plateaus(14, 9, generator)
        factors = list(10 ** generator.uniform(-1, 2, 15))
        cost = Chain([each.atom for each in options], factors, powers=powers)
        limits = [Limit("it", cost, fraction * cost({}))]
        chosen, stepwise = (choose(options, limits) for choose in (choose_widths, narrow_step_by_step))
        assert all(cost(widths) <= limits[0].most for widths in (chosen, stepwise))
        assert error_of(chosen, options) <= error_of(stepwise, options) + 1e-6


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.87])
def test_prices_that_were_reckoned_wrongly_are_made_up_for(fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # around the teacher's own widths alone, where a price is furthest from the true one
    monkeypatch.setattr(module, "ROUNDS", 1)
    generator = np.random.default_rng(int(100 * fraction))
    for _ in range(6):
        options = plateaus(14, 9, generator)
        cost = Chain([each.atom for each in options], list(10 ** generator.uniform(-1, 2, 15)), powers=2)
        limits = [Limit("it", cost, fraction * cost({}))]
        chosen, stepwise = (choose(options, limits) for choose in (choose_widths, narrow_step_by_step))
        assert cost(chosen) <= limits[0].most
        assert error_of(chosen, options) <= error_of(stepwise, options) + 1e-6
