"""A convolution as two: one that writes few channels, and a 1x1 convolution that makes all outputs of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable

import torch
from torch import nn

from netgraft.modules import put_module


class LowRank(nn.Sequential):
    """Two convolutions in the place of one; the first has its kernel, the second its bias."""

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> LowRank:
        """Return two that compute the same as one, bit by bit: the second one passes on what it takes in.

        Args:
            convolution: Of one group; unchanged.
        """
        first = copy.deepcopy(convolution)
        first.bias = None
        outputs = len(convolution.weight)
        weight, bias = convolution.weight.detach(), convolution.bias
        second = nn.utils.skip_init(
            nn.Conv2d, outputs, outputs, 1, bias=bias is not None, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            second.weight.copy_(torch.eye(outputs)[:, :, None, None])
            if bias is not None:
                second.bias.copy_(bias)
        for parameter in second.parameters():
            parameter.requires_grad_(convolution.weight.requires_grad)
        return cls(first, second).train(convolution.training)

    @property
    def both(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The first one and the second one."""
        first, second = self
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        return first, second

    @property
    def pays(self) -> bool:
        """Whether both together cost less than one convolution that computes the same."""
        first, second = self.both
        return pays(len(first.weight), first.weight[0].numel(), len(second.weight))

    @torch.no_grad()
    def joined(self) -> nn.Conv2d:
        """Return one convolution that computes the same but for rounding."""
        first, second = self.both
        whole = copy.deepcopy(first)
        # on the CPU: not every device has float64
        weight = second.weight.cpu().double().flatten(1) @ first.weight.cpu().double().flatten(1)
        shape = (len(second.weight), *first.weight.shape[1:])
        whole.weight = nn.Parameter(weight.reshape(shape).to(first.weight), first.weight.requires_grad)
        whole.out_channels = len(weight)
        whole.bias = second.bias
        return whole


def first_of(name: str) -> str:
    """Return the name of the first one of a convolution that is two."""
    return f"{name}.0"


def second_of(name: str) -> str:
    """Return the name of the second one of a convolution that is two."""
    return f"{name}.1"


def name_of(layer: str, low_rank: Collection[str]) -> str:
    """Return the name of a layer, or of the convolution that it is one of two of.

    Args:
        layer: Its name.
        low_rank: Names of the convolutions that are two each.
    """
    owner = layer.rpartition(".")[0]
    return owner if owner in low_rank else layer


def pays(rank: int, taken: int, given: int) -> bool:
    """Whether two convolutions cost less than one: multiply-accumulates of each position, and weights.

    Args:
        rank: Channels between the two.
        taken: What one output of the first sums over: input channels times taps of the kernel.
        given: Outputs of the second.
    """
    return rank * (taken + given) < taken * given


def low_rank_layers(model: nn.Module) -> list[str]:
    """Return the names of the convolutions of a model that are two each."""
    return [name for name, module in model.named_modules() if isinstance(module, LowRank)]


def factor(model: nn.Module, names: Iterable[str]) -> None:
    """Make convolutions of ``model`` two each, in place; it computes the same.

    Args:
        model: Whose modules these are.
        names: Of convolutions of one group.

    Raises:
        ValueError: There is no such convolution.
    """
    modules = dict(model.named_modules())
    for name in names:
        layer = modules.get(name)
        if not name or not isinstance(layer, nn.Conv2d) or layer.groups != 1:
            raise ValueError(f"there is no convolution {name!r} of one group to be made two")
        put_module(model, name, LowRank.of(layer))


def join_dear_ones(model: nn.Module) -> None:
    """Make one convolution, in place, of each two that don't cost less than it."""
    for name in low_rank_layers(model):
        layers = model.get_submodule(name)
        if isinstance(layers, LowRank) and not layers.pays:
            put_module(model, name, layers.joined())
