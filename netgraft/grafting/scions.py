"""Module surgery: adapters, scions, and how they are grafted into the stock and joined.

Horticulture gives the words, as in the article (Shen et al., AAAI 2021, arXiv 2012.04915): the teacher is the
stock, what is grafted into it is the scion. Everything here returns new containers that share modules; no state
is set on the teacher and none has to be reset.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from netgraft.grafting.adapters import (
    PLAIN,
    Adapter,
    AdapterForm,
    AnyAdapter,
    ConvertingAdapter,
    between,
    in_full,
    projection,
    start_with,
)
from netgraft.grafting.foldability import why_not_foldable
from netgraft.grafting.layout_conversion import form_of
from netgraft.grafting.pairing import Pairing
from netgraft.splitting.chain import BlockChain


class Scion(nn.Sequential):
    """Student blocks with the adapters that let them stand among teacher blocks: enter, block, exit."""

    def adapters(self) -> list[AnyAdapter]:
        """Return the adapters, front to back."""
        return [layer for layer in self if isinstance(layer, AnyAdapter)]

    def blocks(self) -> list[nn.Module]:
        """Return the student blocks, front to back."""
        return [layer for layer in self if not isinstance(layer, AnyAdapter)]


def graft(stock: BlockChain, scion: nn.Module, at: range) -> nn.Sequential:
    """Replace the stock's blocks ``at`` by ``scion`` (Shen et al., AAAI 2021, section "Block Grafting").

    Args:
        stock: The teacher's chain.
        scion: Takes in what crosses the cut in front of these blocks, and gives what crosses the cut behind them.
        at: Numbers of the blocks, neighbours in order.

    Returns:
        A new container that shares its modules with ``stock`` and ``scion``.

    Raises:
        ValueError: ``at`` is empty, or no run of the stock's blocks.

    Examples:
        >>> import torch
        >>> from netgraft import load_teacher, split
        >>> images = torch.randn(2, 1, 8, 8)
        >>> stock = split(load_teacher("digits_vgg7_bn"), probe=images)
        >>> [str(cut) for cut in stock.cuts]
        ['32x4x4', '64x2x2', '128x1x1']
        >>> scion = torch.nn.Conv2d(32, 64, 3, stride=2, padding=1)
        >>> graft(stock, scion, range(1, 2))(images).shape
        torch.Size([2, 10])
    """
    if at.step != 1 or not 0 <= at.start < at.stop <= len(stock):
        raise ValueError(
            f"expected a run of the stock's {len(stock)} blocks, got {at}; name neighbouring blocks in order"
        )
    blocks = stock.blocks()
    return nn.Sequential(*blocks[: at.start], scion, *blocks[at.stop :])


def join(scions: Sequence[Scion], *, directly: bool = False) -> Scion:
    """Chain neighbouring scions; where two meet, the first one's exit is followed by the second one's enter.

    Where these convert to the teacher's form and back, their projections alone remain: between two of its own blocks
    the student keeps its layout, its resolution and its prefix tokens.

    Args:
        scions: Of neighbouring blocks, in order.
        directly: Whether blocks follow one another without adapters between them: those of a student that keeps its
            weights fit together as they are.

    Returns:
        A new scion that shares its modules with ``scions``.
    """
    layers: list[nn.Module] = []
    for scion in scions:
        arriving = list(scion)
        if layers and directly:
            layers = layers[:-1] if isinstance(layers[-1], AnyAdapter) else layers
            arriving = arriving[1:] if isinstance(arriving[0], AnyAdapter) else arriving
        elif layers and isinstance(layers[-1], ConvertingAdapter) and isinstance(arriving[0], ConvertingAdapter):
            layers[-1], arriving[0] = layers[-1].projection, arriving[0].projection
        layers += arriving
    return Scion(*layers)


def make_scions(pairing: Pairing, *, trained: bool = True, form: AdapterForm = PLAIN) -> list[Scion]:
    """Wrap each student block that is not inherited in the adapters that it needs.

    An ``enter`` stands where widths, layouts, map sizes or prefix tokens differ. An ``exit`` stands there too, and
    where it will fold into the student's next block, so that it costs nothing in the end. The first block has no
    ``enter``, the last no ``exit``. All of them mix channels in the student's own layout.

    Args:
        pairing: Teacher and student.
        trained: Whether the adapters are going to be trained. If not, there is none where nothing differs: it would
            stay the identity.
        form: Of the adapters; those of a student of slices choose the teacher's channels, whatever its ``init``.

    Returns:
        A scion for each student block that is not inherited, in order.
    """
    scions = []
    for number in range(pairing.inherited, len(pairing)):
        layers: list[nn.Module] = [pairing.student[number]]
        if number > 0 and _needs_enter(pairing, number - 1):
            layers.insert(0, _enter(pairing, number - 1, form))
        if number < len(pairing) - 1 and _needs_exit(pairing, number, trained, form):
            layers.append(_exit(pairing, number, form))
        scions.append(Scion(*layers))
    return scions


def _needs_enter(pairing: Pairing, cut: int) -> bool:
    teacher, student = pairing.teacher.cuts[cut], pairing.student.cuts[cut]
    return teacher.channels != student.channels or form_of(teacher) != form_of(student)


def _needs_exit(pairing: Pairing, cut: int, trained: bool, form: AdapterForm) -> bool:
    if _needs_enter(pairing, cut):
        return True
    next_block, layout = pairing.student[cut + 1], pairing.student.cuts[cut].layout
    return trained and why_not_foldable(next_block, layout, bias=form.bias) is None


def _enter(pairing: Pairing, cut: int, form: AdapterForm) -> AnyAdapter:
    wide, narrow = pairing.teacher.cuts[cut], pairing.student.cuts[cut]
    if _selects(pairing, cut):
        return Adapter.selecting(pairing.selections[cut], wide.channels, bias=form.bias)
    mix = projection(narrow.layout, wide.channels, narrow.channels, form)
    if pairing.selections:
        start_with(mix, in_full(pairing.selections[cut], wide.channels))
    return between(wide, narrow, mix, own=narrow)


def _selects(pairing: Pairing, cut: int) -> bool:
    """Whether an adapter is a convolution that starts as a choice of the teacher's channels."""
    if not pairing.selections or pairing.student.cuts[cut].layout != "NCHW":
        return False
    return not pairing.selections[cut].is_floating_point()


def _exit(pairing: Pairing, cut: int, form: AdapterForm) -> AnyAdapter:
    wide, narrow = pairing.teacher.cuts[cut], pairing.student.cuts[cut]
    if _selects(pairing, cut):
        return Adapter.placing(pairing.selections[cut], wide.channels, bias=form.bias)
    mix = projection(narrow.layout, narrow.channels, wide.channels, form)
    if pairing.selections:
        # a basis is orthogonal, but for the mean
        start_with(mix, in_full(pairing.selections[cut], wide.channels).T)
    return between(narrow, wide, mix, own=narrow)


def assemble(pairing: Pairing, scions: Sequence[Scion]) -> nn.Sequential:
    """Put the student together: its inherited blocks, then the scions with their adapters.

    Args:
        pairing: Teacher and student.
        scions: Of all blocks that are not inherited, in order.

    Returns:
        The student with every adapter as a visible layer; ``fold`` folds them away.
    """
    return nn.Sequential(*pairing.student.blocks()[: pairing.inherited], *join(scions, directly=pairing.fits_together))
