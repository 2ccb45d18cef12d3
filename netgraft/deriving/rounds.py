"""Narrow a model in several rounds: how far each goes, and which channels of the teacher are left behind them all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.axes import Atom
from netgraft.deriving.choice import Limit
from netgraft.deriving.narrowing import Kept

LEAST_KEPT = 0.8
"""Of each cost, in one round: what every channel is worth changes with those that have gone."""


def rounds_to(limits: Sequence[Limit], rounds: int | None = None) -> list[list[Limit]]:
    """Return what may be spent behind each round, the last time what may be spent at all.

    Each round keeps the same part of a cost.

    Args:
        limits: Of the teacher's costs.
        rounds: How many; None for as many as it takes to keep :data:`LEAST_KEPT` in each.
    """
    parts = [limit.most / limit.cost({}) for limit in limits]
    if rounds is None:
        rounds = max((math.ceil(math.log(part) / math.log(LEAST_KEPT) - 1e-9) for part in parts), default=1)
    count = max(rounds, 1)
    ways = [part ** (number / count - 1) for part in parts for number in range(1, count + 1)]
    return [
        [replace(limit, most=limit.most * ways[at * count + number]) for at, limit in enumerate(limits)]
        for number in range(count - 1)
    ] + [list(limits)]


def correspondence(narrowed: Anatomy, teacher: Anatomy) -> dict[Atom, Atom]:
    """Return which of the teacher's channels those of a model were that was made of it.

    The tensors of both have the same names, and their axes the same atoms in the same order. What can't be told, such
    as channels of which one is left, is left out.

    Args:
        narrowed: Of the teacher with fewer channels and blocks.
        teacher: Before anything was narrowed.
    """
    pairs: dict[Atom, set[Atom]] = {}
    for name, axes in narrowed.found.tensors.items():
        for ours, theirs in zip(axes, teacher.found.tensors[name], strict=True):
            if [len(segment) for segment in ours.segments] != [len(segment) for segment in theirs.segments]:
                continue
            for one, other in zip(ours.atoms(), theirs.atoms(), strict=True):
                pairs.setdefault(one, set()).add(other)
    blocks = {block.name: block.atom for block in teacher.blocks}
    pairs |= {block.atom: {blocks[block.name]} for block in narrowed.blocks if block.name in blocks}
    certain = {one: others.pop() for one, others in pairs.items() if len(others) == 1}
    taken = list(certain.values())
    return {one: other for one, other in certain.items() if taken.count(other) == 1}


def composed(kept: Kept, further: Kept, teachers: Mapping[Atom, Atom]) -> Kept:
    """Return which of the teacher's channels are left behind another round.

    Args:
        kept: Of the teacher's channels, in front of it.
        further: Which of those are left, by the atoms of the narrowed model.
        teachers: The teacher's atom of each of them.
    """
    return {
        **kept,
        **{
            teachers[atom]: kept[teachers[atom]][channels] if teachers[atom] in kept else channels
            for atom, channels in further.items()
        },
    }
