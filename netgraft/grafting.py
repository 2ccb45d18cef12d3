"""Module surgery: adapters, scions, and how they are grafted into the stock and joined.

Horticulture gives the words, as in the article (Shen et al., AAAI 2021, arXiv 2012.04915): the teacher is the
stock, what is grafted into it is the scion. Everything here returns new containers that share modules; no state
is set on the teacher and none has to be reset.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netgraft.blocks import BlockChain
from netgraft.connectors import Projector
from netgraft.folding import why_not_foldable
from netgraft.pairing import Pairing


class Adapter(Projector):
    """A projector that stays with the student until it is folded away.

    Without a bias it maps zero padding to zero padding, which is what lets it fold exactly into a padded
    convolution.
    """

    @classmethod
    def selecting(cls, channels: Tensor, width: int) -> Adapter:
        """Keep ``channels`` (indices) of ``width`` channels."""
        adapter = cls(width, len(channels))
        with torch.no_grad():
            adapter.weight.zero_()
            adapter.weight[torch.arange(len(channels)), channels] = 1.0
        return adapter

    @classmethod
    def placing(cls, channels: Tensor, width: int) -> Adapter:
        """Put each channel at its index in ``channels`` among ``width`` channels, zero elsewhere."""
        adapter = cls(len(channels), width)
        with torch.no_grad():
            adapter.weight.zero_()
            adapter.weight[channels, torch.arange(len(channels))] = 1.0
        return adapter


class Scion(nn.Sequential):
    """Student blocks with the adapters that let them stand among teacher blocks: enter, block, exit."""

    def adapters(self) -> list[Adapter]:
        """Return the adapters, front to back."""
        return [layer for layer in self if isinstance(layer, Adapter)]

    def blocks(self) -> list[nn.Module]:
        """Return the student blocks, front to back."""
        return [layer for layer in self if not isinstance(layer, Adapter)]


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
    """Chain neighbouring scions; where two meet, the first one's exit is followed by the second one's enter."""
    return Scion(*(layer for scion in scions for layer in scion))


def make_scions(pairing: Pairing, *, trained: bool = True) -> list[Scion]:
    """Wrap each student block that is not inherited in the adapters that it needs.

    An ``enter`` stands where the widths differ. An ``exit`` stands where the widths differ or where it will
    fold into the student's next block, so that it costs nothing in the end. The first block has no ``enter``,
    the last no ``exit``.

    Args:
        pairing: Teacher and student.
        trained: Whether the adapters are going to be trained. If not, there is none where the widths are equal: it
            would stay the identity.
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
    wide, narrow = pairing.widths[cut]
    return wide != narrow


def _needs_exit(pairing: Pairing, cut: int, trained: bool) -> bool:
    return _needs_enter(pairing, cut) or (trained and why_not_foldable(pairing.student[cut + 1]) is None)


def _enter(pairing: Pairing, cut: int) -> Adapter:
    wide, narrow = pairing.widths[cut]
    return Adapter.selecting(pairing.selections[cut], wide) if pairing.selections else Adapter(wide, narrow)


def _exit(pairing: Pairing, cut: int) -> Adapter:
    wide, narrow = pairing.widths[cut]
    return Adapter.placing(pairing.selections[cut], wide) if pairing.selections else Adapter(narrow, wide)


def assemble(pairing: Pairing, scions: Sequence[Scion]) -> nn.Sequential:
    """Put the student together: its inherited blocks, then the scions with their adapters.

    Returns:
        The student with every adapter as a visible layer; :func:`netgraft.folding.fold` folds them away.
    """
    return nn.Sequential(*pairing.student.blocks()[: pairing.inherited], *join(scions))
