"""How a budget is shared out among places: as a knapsack, step by step, or evenly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from netgraft.deriving.axes import Atom
from netgraft.deriving.choice import Limit, Options, check_limits, choose_widths, narrow_step_by_step

HALVINGS = 40
"""Of the interval in which the even share is sought."""


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
    "greedy": narrow_step_by_step,
    "uniform": uniform_widths,
}
