"""Choose widths for a budget: the least error that it buys, as a knapsack whose prices depend on the neighbours."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from netgraft.deriving.axes import Atom
from netgraft.deriving.costs import Cost
from netgraft.deriving.moves import Moves
from netgraft.deriving.native_output import native_output_to_stderr
from netgraft.errors import RequestError

ROUNDS = 12
"""How often the knapsack is solved again with the prices of what it chose."""

ROUNDING = 1e-12
"""Of a limit: what is added up in another order may differ by so much; each choice is looked at once more."""

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
    slack = np.ones(len(limits))
    tried = set()
    for _ in range(ROUNDS):
        chosen = search.knapsack(present, slack)
        if chosen is None:
            break
        found.append(search.narrowed(chosen))
        spent = search.spent(search.widths(chosen)) / search.most
        slack = np.where(spent > 1, slack / np.maximum(spent, 1), 1.0)
        # the same prices again, at once or in a circle
        if chosen == present or (chosen, slack.tobytes()) in tried:
            break
        tried.add((chosen, slack.tobytes()))
        present = chosen
    # a greedy choice is better now and then, and costs next to nothing; each is refined, since the worse may end lower
    candidates = [search.greedy, *([min(found, key=search.error)] if found else [])]
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
    return search.widths(search.greedy)


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
    def errors(self) -> list[NDArray[np.float64]]:
        """Of each place at each width; a little larger where less is kept."""
        return [np.array(place.errors) + TIE * (1 - np.array(place.widths) / place.widths[-1]) for place in self.places]

    @cached_property
    def greedy(self) -> tuple[int, ...]:
        """What narrowing step by step makes of the widest."""
        return self.narrowed(self.widest)

    @cached_property
    def most(self) -> NDArray[np.float64]:
        """What may be spent, (limits,)."""
        return np.array([limit.most for limit in self.limits], dtype=np.float64)

    def error(self, chosen: Sequence[int]) -> float:
        return float(sum(errors[number] for errors, number in zip(self.errors, chosen, strict=True)))

    def spent(self, widths: Mapping[Atom, int]) -> NDArray[np.float64]:
        """Return what widths cost, (limits,)."""
        return np.array([limit.cost(widths) for limit in self.limits])

    def moves(self, chosen: Sequence[int]) -> Moves:
        """Return what other widths than the chosen ones would change."""
        return Moves(
            [place.atom for place in self.places],
            [place.widths for place in self.places],
            [limit.cost for limit in self.limits],
            chosen,
        )

    def knapsack(self, present: tuple[int, ...], slack: NDArray[np.float64]) -> tuple[int, ...] | None:
        """Solve it with prices around ``present``; None where these prices leave nothing.

        Widths whose error alone is larger than all of the greedy choice's can't be in a better one. Left out, they make
        the problem smaller by far, and better scaled: with errors of many powers of ten HiGHS takes minutes.
        """
        sizes = [len(place.widths) for place in self.places]
        one_each = np.repeat(np.eye(len(sizes)), sizes, axis=1)
        prices = np.concatenate(self.moves(present).changes, axis=1) / self.most[:, None]
        most = slack - self.spent(self.widths(present)) / self.most
        errors = np.concatenate(self.errors)
        hopeless = errors > self.error(self.greedy)
        with native_output_to_stderr():
            found = milp(
                np.where(hopeless, 0.0, errors),
                constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(prices, -np.inf, most)],
                bounds=Bounds(0, np.where(hopeless, 0.0, 1.0)),
                integrality=1,
            )
        if found.x is None:
            return None
        return tuple(int(np.argmax(part)) for part in np.split(found.x, np.cumsum(sizes)[:-1]))

    def narrowed(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Narrow step by step until all limits are met, as the smallest widths do."""
        moves = self.moves(chosen)
        while (over := self.spent(moves.widths) > self.most).any():
            ranks = np.full(len(self.places), math.inf)
            for number, (place, at) in enumerate(zip(self.places, moves.chosen, strict=True)):
                if at:
                    saved = -(moves.changes[number][over, at - 1] / self.most[over]).sum()
                    # what saves nothing by itself may save something together with others, and comes last
                    ranks[number] = (
                        (place.errors[at - 1] - place.errors[at]) / saved if saved > 0 else sys.float_info.max
                    )
            best = int(ranks.argmin())
            assert ranks[best] < math.inf, "the smallest widths meet all limits"
            moves.move({best: moves.chosen[best] - 1})
        return tuple(moves.chosen)

    def refined(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Raise one place, and where that is too dear lower another, as long as the error falls."""
        moves = self.moves(chosen)
        while (better := self._better(moves)) is not None:
            moves.move(better)
        return tuple(moves.chosen)

    def _better(self, moves: Moves) -> dict[int, int] | None:
        """Return the widths of one or two places that lower the error most, and meet the limits; None without any."""
        for change, numbers in sorted(self._neighbours(moves), key=lambda neighbour: neighbour[0]):
            others = {self.places[place].atom: self.places[place].widths[number] for place, number in numbers.items()}
            if change < -1e-15 and (self.spent({**moves.widths, **others}) <= self.most).all():
                return numbers
        return None

    def _neighbours(self, moves: Moves) -> Iterator[tuple[float, dict[int, int]]]:
        """Yield what raising each place changes the error by: alone, or with the best others that pay for it."""
        room = self.most * (1 + ROUNDING) - self.spent(moves.widths)
        sizes = [len(place.widths) for place in self.places]
        owners = np.repeat(np.arange(len(sizes)), sizes)
        numbers = np.concatenate([np.arange(size) for size in sizes])
        lower = numbers < np.repeat(moves.chosen, sizes)
        costs = np.concatenate(moves.changes, axis=1)
        added = np.concatenate([errors - errors[at] for errors, at in zip(self.errors, moves.chosen, strict=True)])
        for place, at in enumerate(moves.chosen):
            if at + 1 == sizes[place]:
                continue
            won = float(self.errors[place][at] - self.errors[place][at + 1])
            dearer = moves.changes[place][:, at + 1]
            if (dearer <= room).all():
                yield -won, {place: at + 1}
                continue
            pays = lower & (added < won) & (owners != place)
            beside = np.isin(owners, list(moves.neighbours(place)))
            met = (costs + dearer[:, None] <= room[:, None]).all(axis=0)
            alone = np.flatnonzero(pays & ~beside & met)
            if alone.size:
                best = alone[added[alone].argmin()]
                yield float(added[best]) - won, {place: at + 1, int(owners[best]): int(numbers[best])}
            together = np.flatnonzero(pays & beside)
            for other in together[added[together].argsort(kind="stable")]:
                by = int(owners[other]), int(numbers[other])
                if (moves.change(place, at + 1, *by) <= room).all():
                    yield float(added[other]) - won, {place: at + 1, by[0]: by[1]}
                    break
