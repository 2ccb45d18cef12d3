"""What objectives see of teacher and student behind their blocks, as maps of one size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from netgraft.errors import RequestError
from netgraft.grafting.layout_conversion import LayoutConversion, form_of
from netgraft.grafting.pairing import Pairing
from netgraft.plan import (
    Feature,
)
from netgraft.splitting.chain import Cut
from netgraft.splitting.layouts import Layout


def ends(pairing: Pairing) -> range:
    """Return the numbers of the trained blocks whose outputs have a counterpart at the teacher: all but the head.

    Raises:
        RequestError: The head alone is trained, so there is nothing in front of it to compare.
    """
    numbers = range(pairing.inherited, len(pairing) - 1)
    if not numbers:
        raise RequestError(
            "all blocks but the head are inherited, so there are no features to compare; add --inherit none"
        )
    return numbers


def compared_size(pairing: Pairing, number: int) -> tuple[int, ...]:
    """Height and width at which the outputs of block ``number`` are compared: the smaller ones of both networks."""
    return tuple(map(min, pairing.teacher.cuts[number].size, pairing.student.cuts[number].size))


def student_feature(pairing: Pairing, number: int, connector: nn.Module | None = None) -> Feature:
    """Make a feature of the student: maps (B, C, H, W) of the compared size, and behind them the connector."""
    return _feature(number, to_maps(pairing.student.cuts[number], compared_size(pairing, number)), connector)


def teacher_feature(pairing: Pairing, number: int, connector: nn.Module | None = None) -> Feature:
    """Likewise of the teacher."""
    return _feature(number, to_maps(pairing.teacher.cuts[number], compared_size(pairing, number)), connector)


def _feature(number: int, bridges: Sequence[LayoutConversion], connector: nn.Module | None) -> Feature:
    if connector is None:
        return Feature(number, bridges[0] if bridges else None)
    return Feature(number, behind(bridges, connector))


def to_maps(cut: Cut, size: tuple[int, ...]) -> list[LayoutConversion]:
    """Return the bridge from what crosses ``cut`` to maps (B, C, H, W) of ``size``; none where it is such a map."""
    target = Layout("NCHW", size)
    return [] if form_of(cut) == target else [LayoutConversion(form_of(cut), target)]


def behind(bridges: Sequence[LayoutConversion], connector: nn.Module) -> nn.Module:
    """Put ``connector`` behind bridges, if there are any."""
    return nn.Sequential(*bridges, connector) if bridges else connector


def middle(pairing: Pairing) -> int:
    """Return the number of the middle one of the trained blocks in front of the head."""
    numbers = ends(pairing)
    return numbers[(len(numbers) - 1) // 2]
