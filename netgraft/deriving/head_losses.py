"""What attention's logits lose with the width of heads, and who else does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from netgraft.deriving.axes import Atom
from netgraft.deriving.heads import Logits, Rows
from netgraft.deriving.places import Place
from netgraft.deriving.selection import Losing, Reader


def losing_at(place: Place, readers: Mapping[str, Reader]) -> list[Losing]:
    """Return all that loses with the channels of a place: the layers that sum over them, and logits.

    Args:
        place: Whose channels.
        readers: All layers that count, with what they take in.
    """
    return [
        *(readers[product.layer] for product in place.readers),
        *(LosingLogits(each, readers[each.queries.layer], readers[each.keys.layer]) for each in place.logits),
    ]


@dataclass(frozen=True, eq=False)
class LosingLogits:
    """Logits of attention whose heads become narrower.

    Attributes:
        logits: Which.
        queries: The layer that gives queries, with what it takes in.
        keys: That of the keys.
    """

    logits: Logits
    queries: Reader
    keys: Reader

    def begin(self, atom: Atom) -> _LogitsLosing:
        """Return them with all channels, while these leave.

        Keys count about their mean: what all of them share changes no attention.
        """
        products = (
            _products(self.queries, self.logits.queries, centred=False)
            * _products(self.keys, self.logits.keys, centred=True)
        ).sum(0)
        return _LogitsLosing(products / products.sum().clamp_min(1e-30), torch.zeros(atom.size, dtype=torch.bool))


def _products(writer: Reader, rows: Rows, *, centred: bool) -> Tensor:
    """Return the mean products of each head's channels, (heads, width, width), float64."""
    weight = writer.layer.weight.detach().cpu().double().flatten(1)
    products = weight @ writer.moments.covariance(centred=True) @ weight.T
    if not centred:
        mean = weight @ writer.moments.mean
        if writer.layer.bias is not None:
            mean = mean + writer.layer.bias.detach().cpu().double()
        products = products + torch.outer(mean, mean)
    return products[rows.numbers[:, :, None], rows.numbers[:, None, :]]


@dataclass(eq=False)
class _LogitsLosing:
    """Logits while channels leave: nothing makes up for them.

    With queries and keys of unlike positions their squared error is the sum over pairs of channels that are gone.

    Attributes:
        products: Of each pair, in parts of the logits' energy, (width, width).
        gone: Which have left, (width,).
    """

    products: Tensor
    gone: Tensor

    def losses(self, channels: Tensor) -> Tensor:
        with_gone = self.products[channels][:, self.gone].sum(1)
        return self.products.diagonal()[channels] + 2 * with_gone

    def remove(self, channel: int) -> None:
        self.gone[channel] = True

    def pack(self, gone: Tensor) -> None:
        """Nothing becomes smaller."""
