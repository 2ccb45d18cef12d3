"""A copy of a model that computes the same in other bases, in which its channels are worth unequally much."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.head_bases import turn_head_bases
from netgraft.deriving.low_rank import second_of
from netgraft.deriving.rank_bases import turn_ranks

Turning = Callable[[Anatomy, Sequence[Tensor]], Anatomy]
"""From the anatomy of a copy, whose weights it may change in place, and views (B, C, H, W) each, to that of a model
that computes the same. Names of modules and places, and atoms, stay."""


def _turn_streams(anatomy: Anatomy, batches: Sequence[Tensor]) -> Anatomy:
    if anatomy.bases is None:
        return anatomy
    return replace(anatomy, bases=anatomy.bases.turned(anatomy.model, batches))


def _turn_heads(anatomy: Anatomy, batches: Sequence[Tensor]) -> Anatomy:
    if anatomy.turnable:
        turn_head_bases(anatomy.model, anatomy.turnable, batches)
    return anatomy


def _turn_ranks(anatomy: Anatomy, batches: Sequence[Tensor]) -> Anatomy:
    norms = {name: anatomy.norm_behind(anatomy.model, second_of(name)) for name in sorted(anatomy.found.low_rank)}
    turn_ranks(anatomy.model, batches, norms)
    return anatomy


TURNINGS: tuple[Turning, ...] = (_turn_streams, _turn_heads, _turn_ranks)
"""One after another."""


def turned(anatomy: Anatomy, batches: Sequence[Tensor]) -> Anatomy:
    """Return the anatomy of a model in other bases that computes the same; the given one is unchanged.

    Args:
        anatomy: Of the teacher.
        batches: Views (B, C, H, W) each, that statistics are taken of.
    """
    if not anatomy.turned_kinds:
        return anatomy
    anatomy = replace(anatomy, model=copy.deepcopy(anatomy.model))
    for turning in TURNINGS:
        anatomy = turning(anatomy, batches)
    return anatomy
