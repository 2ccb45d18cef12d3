"""Prove what can be done to a model: answers in float64, and which of many candidates hold together."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

FEW = 4
"""Candidates that are alike are all tried if they are no more than that."""


def exactly(model: nn.Module) -> nn.Module:
    """Return a copy in float64, on the CPU: not every device has it."""
    return copy.deepcopy(model).cpu().double()


def agree(got: Tensor, expected: Tensor) -> bool:
    """Whether answers (B, K) are the same but for rounding in float64."""
    scale = expected.abs().max().clamp_min(1e-30)
    return bool(torch.isfinite(got).all()) and torch.allclose(got / scale, expected / scale, rtol=0, atol=1e-9)


def those_that_hold(
    candidates: Sequence[T], holds: Callable[[list[T]], bool], alike: Callable[[T], Hashable]
) -> list[T]:
    """Return those that hold together.

    What is tried comes on top of what held before, so that one bad pair costs no more than one of the two; where it
    fails the culprits are found by halving. Of candidates that are alike none is tried if neither the first, the
    last, nor the one in the middle holds alone: two dozen blocks of which none holds take minutes otherwise.

    Args:
        candidates: In any order.
        holds: Whether some of them do; dear.
        alike: What candidates have in common of which, most likely, all hold or none.
    """

    def with_more(held: list[T], more: list[T]) -> list[T]:
        if not more or holds(held + more):
            return held + more
        if len(more) == 1:
            return held
        middle = len(more) // 2
        return with_more(with_more(held, more[:middle]), more[middle:])

    if not candidates or holds(list(candidates)):
        return list(candidates)
    families: dict[Hashable, list[T]] = {}
    for candidate in candidates:
        families.setdefault(alike(candidate), []).append(candidate)
    hopeless = {
        family
        for family, members in families.items()
        if len(members) > FEW and not any(holds([members[at]]) for at in (0, -1, len(members) // 2))
    }
    return with_more([], [candidate for candidate in candidates if alike(candidate) not in hopeless])


def unnumbered(name: str) -> str:
    """Return what a module is called in each of the blocks that are alike."""
    return re.sub(r"\d+", "*", name)
