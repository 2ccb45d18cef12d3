"""What objectives see of teacher and student behind their blocks, as maps of one size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from netgraft.errors import RequestError
from netgraft.grafting.layout_conversion import LayoutConversion, form_of
from netgraft.grafting.pairing import Pairing
from netgraft.plan import Feature
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
    """Return height and width at which the outputs of block ``number`` are compared: the smaller of both networks'."""
    return tuple(map(min, pairing.teacher.cuts[number].size, pairing.student.cuts[number].size))


def student_feature(pairing: Pairing, number: int, connector: nn.Module | None = None) -> Feature:
    """Make a feature of the student, of maps (B, C, H, W).

    Args:
        pairing: Teacher and student.
        number: Of the block whose output it is.
        connector: Behind the maps; none by default.

    Returns:
        The output of the block as maps of the compared size, which pass through the connector.
    """
    return _feature(number, to_maps(pairing.student.cuts[number], compared_size(pairing, number)), connector)


def teacher_feature(pairing: Pairing, number: int, connector: nn.Module | None = None) -> Feature:
    """Make a feature of the teacher; otherwise as :func:`student_feature`."""
    return _feature(number, to_maps(pairing.teacher.cuts[number], compared_size(pairing, number)), connector)


def _feature(number: int, conversions: Sequence[LayoutConversion], connector: nn.Module | None) -> Feature:
    if connector is None:
        return Feature(number, conversions[0] if conversions else None)
    return Feature(number, behind(conversions, connector))


def to_maps(cut: Cut, size: tuple[int, ...]) -> list[LayoutConversion]:
    """Return the conversion of what crosses a cut to maps (B, C, H, W); none where it is such maps already.

    Args:
        cut: Of either network.
        size: Height H and width W of the maps.
    """
    target = Layout("NCHW", size)
    return [] if form_of(cut) == target else [LayoutConversion(form_of(cut), target)]


def behind(conversions: Sequence[LayoutConversion], connector: nn.Module) -> nn.Module:
    """Put a connector behind conversions; it stands alone where there are none."""
    return nn.Sequential(*conversions, connector) if conversions else connector


def middle(pairing: Pairing) -> int:
    """Return the number of the middle one of the trained blocks in front of the head.

    Raises:
        RequestError: The head alone is trained.
    """
    numbers = ends(pairing)
    return numbers[(len(numbers) - 1) // 2]
