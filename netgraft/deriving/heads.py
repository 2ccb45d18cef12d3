"""Heads of attention: which channels of which layers are multiplied with one another without weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from netgraft.deriving.axes import Atom


@dataclass(frozen=True, eq=False)
class Rows:
    """Channels of what a layer gives, or of what it takes in, head by head.

    Attributes:
        layer: Its name.
        numbers: (heads, width).
    """

    layer: str
    numbers: Tensor


@dataclass(frozen=True, eq=False)
class Logits:
    """Products of queries with keys.

    Attributes:
        atom: The width of a head, which they sum over.
        queries: What the one layer gives.
        keys: What the other one gives, or the same one in other channels.
        module: Name of the innermost module in whose forward they are taken.
    """

    atom: Atom
    queries: Rows
    keys: Rows
    module: str


@dataclass(frozen=True, eq=False)
class Values:
    """What is averaged over positions, head by head, and read by a layer.

    Attributes:
        atom: The width of a head.
        written: What the one layer gives.
        read: The channels that the other one takes in, in the same order.
    """

    atom: Atom
    written: Rows
    read: Rows
