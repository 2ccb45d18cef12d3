"""Balanced partitions against all partitions there are."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from netgraft.splitting.balance import balanced_partition


@pytest.mark.parametrize("seed", range(20))
def test_no_other_partition_has_a_smaller_sum_of_squares(seed: int) -> None:
    draw = random.Random(seed)
    costs = [draw.randrange(10) for _ in range(draw.randrange(2, 9))]
    parts = draw.randrange(1, len(costs) + 1)

    def squares(cuts: tuple[int, ...]) -> int:
        ends = [0, *(cut + 1 for cut in cuts), len(costs)]
        return sum(sum(costs[start:end]) ** 2 for start, end in pairwise(ends))

    # combinations come in order, and min takes the first of equals
    assert balanced_partition(costs, parts) == min(combinations(range(len(costs) - 1), parts - 1), key=squares)
