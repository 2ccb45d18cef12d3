"""Of many candidates those are found that hold together, with few tries."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from netgraft.deriving.proofs import those_that_hold, unnumbered


class Trier:
    """Says whether candidates hold together, and counts how often it was asked."""

    def __init__(self, bad: Collection[str] = (), pairs: Collection[set[str]] = ()) -> None:
        self.bad, self.pairs = set(bad), list(pairs)
        self.asked = 0

    def __call__(self, some: list[str]) -> bool:
        self.asked += 1
        return not self.bad & set(some) and not any(pair <= set(some) for pair in self.pairs)


def names(layer: str, count: int) -> list[str]:
    return [f"blocks.{number}.{layer}" for number in range(count)]


def test_one_try_is_enough_where_all_hold() -> None:
    trier = Trier()
    assert those_that_hold(names("mlp", 24), trier, unnumbered) == names("mlp", 24)
    assert trier.asked == 1


@pytest.mark.parametrize("number", range(12))
def test_one_bad_candidate_is_found_wherever_it_stands(number: int) -> None:
    candidates = names("mlp", 12)
    bad = candidates[number]
    held = those_that_hold(candidates, Trier([bad]), unnumbered)
    assert held == [name for name in candidates if name != bad]


def test_two_that_do_not_go_together_cost_no_more_than_one_of_them() -> None:
    candidates = names("mlp", 12)
    held = those_that_hold(candidates, Trier(pairs=[{candidates[0], candidates[-1]}]), unnumbered)
    assert len(held) == 11


def test_candidates_of_which_three_fail_alone_are_not_tried_one_by_one() -> None:
    good, bad = names("mlp", 24), names("attn", 24)
    candidates = [name for both in zip(good, bad, strict=True) for name in both]
    trier = Trier(bad)
    assert those_that_hold(candidates, trier, unnumbered) == good
    # halving alone asks more than once for each of the bad ones
    assert trier.asked < 8


@pytest.mark.parametrize("good", [0, 4, 8])
def test_candidates_are_tried_where_the_first_the_last_or_the_one_in_the_middle_holds(good: int) -> None:
    candidates = names("mlp", 9)
    kept = {candidates[good], candidates[3]}
    held = those_that_hold(candidates, Trier(set(candidates) - kept), unnumbered)
    assert set(held) == kept


def test_few_candidates_are_all_tried() -> None:
    candidates = names("mlp", 4)
    assert those_that_hold(candidates, Trier([candidates[0], *candidates[2:]]), unnumbered) == [candidates[1]]


def test_without_candidates_nothing_is_tried() -> None:
    trier = Trier()
    assert those_that_hold([], trier, unnumbered) == []
    assert trier.asked == 0
