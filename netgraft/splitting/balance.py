"""Runs of neighbours of about the same cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def balanced_partition(costs: Sequence[int], parts: int) -> tuple[int, ...]:
    """Cut a sequence of costs into runs of neighbours whose sums have the least sum of squares.

    Args:
        costs: In order, of any unit.
        parts: How many runs, from 1 to ``len(costs)``.

    Returns:
        The ``parts - 1`` cuts in order, cut ``k`` lying behind ``costs[k]``; among equals the first cuts.
    """
    sums = list(accumulate(costs))
    # for each end: the least sum of squares of the runs up to it, and the cuts between them
    best: dict[int, tuple[int, tuple[int, ...]]] = {end: (total**2, ()) for end, total in enumerate(sums)}
    for _ in range(parts - 1):
        best = {
            end: min((best[cut][0] + (sums[end] - sums[cut]) ** 2, (*best[cut][1], cut)) for cut in best if cut < end)
            for end in [*best][1:]
        }
    return best[len(sums) - 1][1]
