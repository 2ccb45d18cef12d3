"""Blocks in order, and the cuts between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Cut:
    """Where one block ends and the next begins: the shape of the tensor that crosses.

    Attributes:
        name: Of the module that ends here.
        shape: Without the batch dimension; empty where several tensors cross.
        layout: ``NCHW``; ``NHWC``; ``tokens`` (batch, length, channels), in rows behind the prefix; ``tuple`` where
            several tensors cross; ``other``, where no picture can be found in the tensor.
        grid: Height and width of the map that tokens make; empty for other layouts.
        prefix_tokens: Class, distillation and register tokens in front of the map's.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    grid: tuple[int, ...] = ()
    prefix_tokens: int = 0

    @property
    def channels(self) -> int:
        """Width of the tensor that crosses; 0 where several do."""
        if not self.shape:
            return 0
        return self.shape[0] if self.layout == "NCHW" else self.shape[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the map that crosses; empty where it is no map."""
        return {"NCHW": self.shape[1:], "NHWC": self.shape[:2], "tokens": self.grid}.get(self.layout, ())

    def __str__(self) -> str:
        return "x".join(str(extent) for extent in self.shape) or self.layout


class BlockChain(nn.Sequential):
    """Named blocks in order, whose composition is the model, and the cuts between them.

    Attributes:
        cuts: One fewer than there are blocks.
        names: Of the blocks: the module that each ends with, ``head`` for the last.

    Args:
        blocks: In order; each takes in what the one before returns.
        names: One a block.
        cuts: One fewer.

    Raises:
        ValueError: There are other numbers of names or cuts.

    Examples:
        >>> import torch
        >>> from netgraft import load_teacher, split
        >>> chain = split(load_teacher("digits_vgg7_bn"), probe=torch.randn(2, 1, 8, 8))
        >>> len(chain), chain.names
        (4, ('features.5', 'features.12', 'features.19', 'head'))
        >>> merged = chain.merge([1])
        >>> [str(cut) for cut in merged.cuts]
        ['64x2x2']
    """

    def __init__(self, blocks: Sequence[nn.Module], names: Sequence[str], cuts: Sequence[Cut]) -> None:
        if len(blocks) != len(names) or len(cuts) != len(blocks) - 1:
            raise ValueError(
                f"{len(blocks)} blocks with {len(names)} names and {len(cuts)} cuts are no chain; "
                "give each block a name and each pair of neighbours a cut"
            )
        super().__init__()
        self.names = tuple(names)
        self.cuts = tuple(cuts)
        for number, (name, block) in enumerate(zip(names, blocks, strict=True)):
            # a key can't hold a dot; the number keeps it apart from other blocks and from attributes
            self.add_module(f"{number}_{name.replace('.', '_')}", block)

    def blocks(self) -> list[nn.Module]:
        """Return the blocks in order."""
        return list(self.children())

    def merge(self, kept: Sequence[int]) -> BlockChain:
        """Join neighbouring blocks.

        Args:
            kept: Numbers of the cuts that remain, in order.

        Returns:
            A new chain that shares its modules with this one.
        """
        borders = [*(cut + 1 for cut in kept), len(self)]
        blocks, start = [], 0
        for border in borders:
            run = self.blocks()[start:border]
            blocks.append(run[0] if len(run) == 1 else nn.Sequential(*run))
            start = border
        names = [self.names[border - 1] for border in borders]
        return keep_modes(self.training, BlockChain(blocks, names, [self.cuts[cut] for cut in kept]), self)


def keep_modes(training: bool, chain: BlockChain, origin: nn.Module) -> BlockChain:
    """Set the mode of the modules that are new in a chain.

    Args:
        training: Their mode.
        chain: Changed in place.
        origin: Its modules keep the modes that they have.

    Returns:
        The chain.
    """
    known = set(origin.modules())
    for module in chain.modules():
        if module not in known:
            module.training = training
    return chain


def state_of(blocks: nn.Module) -> dict[str, Tensor]:
    """Collect the weights of a model's blocks.

    Args:
        blocks: A chain, or any container of blocks and of other modules, whose weights are left out.

    Returns:
        The weights under the names that they have in the model; not copied.
    """
    if isinstance(blocks, fx.GraphModule):
        return blocks.state_dict()
    state: dict[str, Tensor] = {}
    for child in blocks.children():
        state.update(state_of(child))
    return state
