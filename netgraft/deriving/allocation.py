"""How a budget is shared out among places: as a knapsack, step by step, or evenly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from netgraft.deriving.axes import Atom
from netgraft.deriving.choice import Limit, Options, check_limits, choose_widths

HALVINGS = 40
"""Of the interval in which the even share is sought."""


def greedy_widths(places: Sequence[Options], limits: Sequence[Limit]) -> dict[Atom, int]:
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
    widths = {place.atom: place.widths[-1] for place in places}
    at = [len(place.widths) - 1 for place in places]
    while over := [limit for limit in limits if limit.cost(widths) > limit.most]:
        before = [limit.cost(widths) for limit in over]
        best: tuple[float, int] | None = None
        for number, place in enumerate(places):
            if at[number] == 0:
                continue
            narrower = {**widths, place.atom: place.widths[at[number] - 1]}
            saved = sum((cost - limit.cost(narrower)) / limit.most for limit, cost in zip(over, before, strict=True))
            added = place.errors[at[number] - 1] - place.errors[at[number]]
            # what saves nothing by itself may save something together with others, and comes last
            rank = (added / saved if saved > 0 else float("inf"), number)
            best = rank if best is None else min(best, rank)
        assert best is not None, "the smallest widths meet all limits"
        at[best[1]] -= 1
        place = places[best[1]]
        widths[place.atom] = place.widths[at[best[1]]]
    return widths


def uniform_widths(places: Sequence[Options], limits: Sequence[Limit]) -> dict[Atom, int]:
    """Keep the same part of all places, the largest that meets all limits; errors say nothing, and no block goes.

    Args:
        places: With their options, of which the nearest to that part is taken.
        limits: All to be met.

    Returns:
        Width of each place.

    Raises:
        RequestError: Not even the smallest widths meet a limit.
    """
    check_limits([place for place in places if place.widths[-1] > 1], limits)

    def at(part: float) -> dict[Atom, int]:
        return {
            place.atom: min(place.widths, key=lambda width: abs(width - part * place.widths[-1]))
            for place in places
            if place.widths[-1] > 1
        }

    def meets(part: float) -> bool:
        return all(limit.cost(at(part)) <= limit.most for limit in limits)

    if meets(1.0):
        return at(1.0)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return at(low)


Allocation = Callable[[Sequence[Options], Sequence[Limit]], Mapping[Atom, int]]

ALLOCATIONS: dict[str, Allocation] = {
    "knapsack": choose_widths,
    "greedy": greedy_widths,
    "uniform": uniform_widths,
}
