"""Choose widths for a budget: the least error that it buys, as a knapsack whose prices depend on the neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from netgraft.deriving.axes import Atom
from netgraft.deriving.costs import Cost
from netgraft.deriving.native_output import native_output_to_stderr
from netgraft.errors import RequestError

ROUNDS = 12
"""How often the knapsack is solved again with the prices of what it chose."""

TIE = 1e-9
"""Counted as error where all of a place goes, in parts of the logits' variance: of what is as good, more is kept."""


@dataclass(frozen=True, eq=False)
class Options:
    """What can be had at one place.

    Attributes:
        atom: The channels.
        widths: Ascending; the last one is the teacher's.
        errors: Of each width.
    """

    atom: Atom
    widths: tuple[int, ...]
    errors: tuple[float, ...]

    @classmethod
    def unscored(cls, atom: Atom, narrower: Sequence[int]) -> Options:
        """Return the teacher's width and narrower ones, ascending, whose errors nobody measured."""
        widths = (*narrower, atom.size)
        return cls(atom, widths, (math.nan,) * len(widths))


@dataclass(frozen=True, eq=False)
class Limit:
    """What may be spent.

    Attributes:
        name: Of the cost, for people.
        cost: Of a model of some widths.
        most: Allowed.
    """

    name: str
    cost: Cost
    most: float

    def check(self, smallest: Mapping[Atom, int]) -> None:
        """Raise RequestError if not even the smallest widths meet the limit."""
        least = self.cost(smallest)
        if least > self.most:
            raise RequestError(
                f"a budget of {self.most:,.4g} {self.name} can't be met; the least that can is {least:,.4g}"
            )


def check_limits(places: Sequence[Options], limits: Sequence[Limit]) -> None:
    """Raise RequestError if not even the smallest widths meet all limits."""
    smallest = {place.atom: place.widths[0] for place in places}
    for limit in limits:
        limit.check(smallest)


def choose_widths(places: Sequence[Options], limits: Sequence[Limit]) -> dict[Atom, int]:
    """Return the widths with the least sum of errors that meet all limits.

    A layer's price is its input times its output width, so it is linear in one place's width alone. The knapsack is
    solved with the prices around the present widths (SciPy's ``milp``, HiGHS), then again around what it chose. What
    breaks a limit at its true price is narrowed step by step until it meets it. The best, and what narrowing step by
    step makes of the widest, are refined by raising and lowering pairs of places; the better one is taken.

    Args:
        places: With their options.
        limits: All to be met.

    Returns:
        Width of each place.

    Raises:
        RequestError: Not even the smallest widths meet a limit.
    """
    check_limits(places, limits)
    if not places:
        return {}
    search = _Search(places, limits)
    present = search.widest
    found = []
    slack = [1.0] * len(limits)
    for _ in range(ROUNDS):
        chosen = search.knapsack(present, slack)
        if chosen is None:
            break
        found.append(search.narrowed(chosen))
        spent = [limit.cost(search.widths(chosen)) / limit.most for limit in limits]
        slack = [
            part / max(part_spent, 1e-9) if part_spent > 1 else 1.0
            for part, part_spent in zip(slack, spent, strict=True)
        ]
        if chosen == present:
            break
        present = chosen
    # a greedy choice is better now and then, and costs next to nothing; each is refined, since the worse may end lower
    candidates = [search.narrowed(search.widest), *([min(found, key=search.error)] if found else [])]
    return search.widths(min(map(search.refined, candidates), key=search.error))


def narrow_step_by_step(places: Sequence[Options], limits: Sequence[Limit]) -> dict[Atom, int]:
    """Narrow the place whose next width adds the least error for what it saves, until all limits are met.

    Args:
        places: With their options.
        limits: All to be met.

    Returns:
        Width of each place.

    Raises:
        RequestError: Not even the smallest widths meet a limit.
    """
    check_limits(places, limits)
    search = _Search(places, limits)
    return search.widths(search.narrowed(search.widest))


@dataclass(eq=False)
class _Search:
    places: Sequence[Options]
    limits: Sequence[Limit]

    @property
    def widest(self) -> tuple[int, ...]:
        """The teacher's widths."""
        return tuple(len(place.widths) - 1 for place in self.places)

    def widths(self, chosen: Sequence[int]) -> dict[Atom, int]:
        return {place.atom: place.widths[number] for place, number in zip(self.places, chosen, strict=True)}

    @cached_property
    def errors(self) -> list[tuple[float, ...]]:
        """Of each place at each width; a little larger where less is kept."""
        return [
            tuple(
                error + TIE * (1 - width / place.widths[-1])
                for width, error in zip(place.widths, place.errors, strict=True)
            )
            for place in self.places
        ]

    def error(self, chosen: Sequence[int]) -> float:
        return sum(errors[number] for errors, number in zip(self.errors, chosen, strict=True))

    def meets(self, chosen: Sequence[int]) -> bool:
        return all(limit.cost(self.widths(chosen)) <= limit.most for limit in self.limits)

    def knapsack(self, present: tuple[int, ...], slack: Sequence[float]) -> tuple[int, ...] | None:
        """Solve it with prices around ``present``; None where these prices leave nothing."""
        sizes = [len(place.widths) for place in self.places]
        one_each = np.zeros((len(sizes), sum(sizes)))
        prices = np.zeros((len(self.limits), sum(sizes)))
        bases = [limit.cost(self.widths(present)) for limit in self.limits]
        column = 0
        for row, size in enumerate(sizes):
            for number in range(size):
                one_each[row, column] = 1
                moved = self.widths((*present[:row], number, *present[row + 1 :]))
                prices[:, column] = [
                    (limit.cost(moved) - base) / limit.most for limit, base in zip(self.limits, bases, strict=True)
                ]
                column += 1
        most = [part - base / limit.most for part, base, limit in zip(slack, bases, self.limits, strict=True)]
        with native_output_to_stderr():
            found = milp(
                np.concatenate(self.errors),
                constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(prices, -np.inf, most)],
                bounds=Bounds(0, 1),
                integrality=1,
            )
        if found.x is None:
            return None
        starts = np.cumsum([0, *sizes[:-1]])
        return tuple(int(np.argmax(found.x[start : start + size])) for start, size in zip(starts, sizes, strict=True))

    def narrowed(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Narrow step by step until all limits are met, as the smallest widths do."""
        while over := [limit for limit in self.limits if limit.cost(self.widths(chosen)) > limit.most]:
            before = [limit.cost(self.widths(chosen)) for limit in over]
            best: tuple[float, int] | None = None
            for number, place in enumerate(self.places):
                if chosen[number] == 0:
                    continue
                narrower = {**self.widths(chosen), place.atom: place.widths[chosen[number] - 1]}
                saved = sum(
                    (cost - limit.cost(narrower)) / limit.most for limit, cost in zip(over, before, strict=True)
                )
                added = place.errors[chosen[number] - 1] - place.errors[chosen[number]]
                # what saves nothing by itself may save something together with others, and comes last
                rank = (added / saved if saved > 0 else math.inf, number)
                best = rank if best is None else min(best, rank)
            assert best is not None, "the smallest widths meet all limits"
            chosen = (*chosen[: best[1]], chosen[best[1]] - 1, *chosen[best[1] + 1 :])
        return chosen

    def refined(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Raise one place, and where that is too dear lower another, as long as the error falls."""
        while True:
            better = min(self._neighbours(chosen), key=self.error, default=chosen)
            if self.error(better) >= self.error(chosen) - 1e-15:
                return chosen
            chosen = better

    def _neighbours(self, chosen: tuple[int, ...]) -> list[tuple[int, ...]]:
        found = []
        for up, place in enumerate(self.places):
            if chosen[up] + 1 == len(place.widths):
                continue
            raised = (*chosen[:up], chosen[up] + 1, *chosen[up + 1 :])
            if self.meets(raised):
                found.append(raised)
                continue
            for down in range(len(self.places)):
                if down != up:
                    found += self._lowered(raised, down, below=self.error(chosen))
        return found

    def _lowered(self, chosen: tuple[int, ...], place: int, *, below: float) -> list[tuple[int, ...]]:
        """Lower one place until the limits are met, if the error stays below what it was."""
        for number in range(chosen[place] - 1, -1, -1):
            moved = (*chosen[:place], number, *chosen[place + 1 :])
            if self.error(moved) >= below:
                return []
            if self.meets(moved):
                return [moved]
        return []
