"""What objectives see of teacher and student behind their blocks, as maps of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from netgraft.errors import RequestError
from netgraft.grafting.layout_conversion import LayoutConversion, form_of
from netgraft.grafting.pairing import Pairing
from netgraft.plan import Feature
from netgraft.splitting.chain import Cut
from netgraft.splitting.layouts import Layout
from netgraft.splitting.pre_activation import split_before_activation


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


@dataclass(frozen=True, eq=False)
class PreActivations:
    """Both networks up to what enters the last activation of their last compared block, cut there in each of them.

    Attributes:
        student: Its blocks; those that are compared in two, cut in front of the last activation.
        teacher: Likewise.
        ends: Numbers, in both, of the blocks that end in front of an activation.
        widths: The teacher's and the student's channels at each.
    """

    student: nn.Sequential
    teacher: nn.Sequential
    ends: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]


def before_activations(pairing: Pairing) -> PreActivations:
    """Cut the trained blocks that have a counterpart at the teacher once more; the first block of all stays whole.

    Raises:
        RequestError: There are no such blocks, one of them ends in no activation, or teacher and student have other
            maps in front of it.
    """
    numbers = [number for number in ends(pairing) if number]
    if not numbers:
        raise RequestError(
            "no trained block lies between the first one and the head, so there are no pre-activations to compare; "
            "split the models in more blocks, or add --ab-responses block-end"
        )
    chains: dict[str, list[nn.Module]] = {"teacher": [], "student": []}
    positions: list[int] = []
    for number in range(numbers[-1] + 1):
        blocks = {"teacher": pairing.teacher.blocks()[number], "student": pairing.student.blocks()[number]}
        if number not in numbers:
            for which, block in blocks.items():
                chains[which].append(block)
            continue
        positions.append(len(chains["teacher"]))
        parts = {which: split_before_activation(block) for which, block in blocks.items()}
        _check_alike(pairing, number, *(rest for _, rest in parts.values()))
        for which, both in parts.items():
            chains[which] += both
    # what is behind the last one isn't needed
    student, teacher = (nn.Sequential(*chains[which][:-1]) for which in ("student", "teacher"))
    return PreActivations(student, teacher, tuple(positions), tuple(pairing.widths[number] for number in numbers))


def _check_alike(pairing: Pairing, number: int, *rests: nn.Module) -> None:
    """Refuse blocks whose maps differ in size or layout in front of what follows their last activation."""
    pools = [[repr(layer) for layer in rest.modules() if isinstance(layer, _POOLS)] for rest in rests]
    cuts = pairing.teacher.cuts[number], pairing.student.cuts[number]
    forms = [(cut.layout, cut.size) for cut in cuts]
    if pools[0] != pools[1] or forms[0] != forms[1] or forms[0][0] != "NCHW":
        raise RequestError(
            f"pre-activations need maps of one size in both networks, channels first, and the same pooling behind "
            f"them, but block {number + 1} ends in {cuts[0]} and {cuts[1]}, behind "
            f"{' and '.join(', '.join(some) or 'no pooling' for some in pools)}; add --ab-responses block-end"
        )


_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
