"""Module surgery: adapters, scions, and how they are grafted into the stock and joined.

Horticulture gives the words, as in the article (Shen et al., AAAI 2021, arXiv 2012.04915): the teacher is the
stock, what is grafted into it is the scion. Everything here returns new containers that share modules; no state
is set on the teacher and none has to be reset.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from netgraft.grafting.adapters import Adapter, AnyAdapter, ConvertingAdapter, between, projection
from netgraft.grafting.foldability import why_not_foldable
from netgraft.grafting.layout_conversion import form_of
from netgraft.grafting.pairing import Pairing
from netgraft.splitting.chain import BlockChain

__all__ = ["Adapter", "Scion", "assemble", "graft", "join", "make_scions"]


class Scion(nn.Sequential):
    """Student blocks with the adapters that let them stand among teacher blocks: enter, block, exit."""

    def adapters(self) -> list[AnyAdapter]:
        """Return the adapters, front to back."""
        return [layer for layer in self if isinstance(layer, AnyAdapter)]

    def blocks(self) -> list[nn.Module]:
        """Return the student blocks, front to back."""
        return [layer for layer in self if not isinstance(layer, AnyAdapter)]


def graft(stock: BlockChain, scion: nn.Module, at: range) -> nn.Sequential:
    """Replace the stock's blocks ``at`` by ``scion``.

    Returns:
        A new container that shares its modules with ``stock`` and ``scion``.
    """
    if at.step != 1 or not 0 <= at.start < at.stop <= len(stock):
        raise ValueError(f"{at} is no run of the stock's {len(stock)} blocks")
    blocks = stock.blocks()
    return nn.Sequential(*blocks[: at.start], scion, *blocks[at.stop :])


def join(scions: Sequence[Scion]) -> Scion:
    """Chain neighbouring scions; where two meet, the first one's exit is followed by the second one's enter.

    Where these convert to the teacher's form and back, their projections alone remain: between two of its own blocks
    the student keeps its layout, its resolution and its prefix tokens.
    """
    layers: list[nn.Module] = []
    for scion in scions:
        arriving = list(scion)
        if layers and isinstance(layers[-1], ConvertingAdapter) and isinstance(arriving[0], ConvertingAdapter):
            layers[-1], arriving[0] = layers[-1].projection, arriving[0].projection
        layers += arriving
    return Scion(*layers)


def make_scions(pairing: Pairing, *, trained: bool = True) -> list[Scion]:
    """Wrap each student block that is not inherited in the adapters that it needs.

    An ``enter`` stands where widths, layouts, map sizes or prefix tokens differ. An ``exit`` stands there too, and
    where it will fold into the student's next block, so that it costs nothing in the end. The first block has no
    ``enter``, the last no ``exit``. All of them mix channels in the student's own layout.

    Args:
        pairing: Teacher and student.
        trained: Whether the adapters are going to be trained. If not, there is none where nothing differs: it would
            stay the identity.
    """
    scions = []
    for number in range(pairing.inherited, len(pairing)):
        layers: list[nn.Module] = [pairing.student[number]]
        if number > 0 and _needs_enter(pairing, number - 1):
            layers.insert(0, _enter(pairing, number - 1))
        if number < len(pairing) - 1 and _needs_exit(pairing, number, trained):
            layers.append(_exit(pairing, number))
        scions.append(Scion(*layers))
    return scions


def _needs_enter(pairing: Pairing, cut: int) -> bool:
    mine, theirs = pairing.teacher.cuts[cut], pairing.student.cuts[cut]
    return mine.channels != theirs.channels or form_of(mine) != form_of(theirs)


def _needs_exit(pairing: Pairing, cut: int, trained: bool) -> bool:
    if _needs_enter(pairing, cut):
        return True
    return trained and why_not_foldable(pairing.student[cut + 1], pairing.student.cuts[cut].layout) is None


def _enter(pairing: Pairing, cut: int) -> AnyAdapter:
    wide, narrow = pairing.teacher.cuts[cut], pairing.student.cuts[cut]
    if pairing.selections:
        return Adapter.selecting(pairing.selections[cut], wide.channels)
    return between(wide, narrow, projection(narrow.layout, wide.channels, narrow.channels), own=narrow)


def _exit(pairing: Pairing, cut: int) -> AnyAdapter:
    wide, narrow = pairing.teacher.cuts[cut], pairing.student.cuts[cut]
    if pairing.selections:
        return Adapter.placing(pairing.selections[cut], wide.channels)
    return between(narrow, wide, projection(narrow.layout, narrow.channels, wide.channels), own=narrow)


def assemble(pairing: Pairing, scions: Sequence[Scion]) -> nn.Sequential:
    """Put the student together: its inherited blocks, then the scions with their adapters.

    Returns:
        The student with every adapter as a visible layer; :func:`netgraft.grafting.folding.fold` folds them away.
    """
    return nn.Sequential(*pairing.student.blocks()[: pairing.inherited], *join(scions))
