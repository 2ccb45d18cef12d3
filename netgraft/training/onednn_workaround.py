"""Taps of convolutions that meet nothing but padding, because the map is smaller than the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def taps_on_map(conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Say which taps of a zero-padded convolution ever meet a map.

    Args:
        conv: With padding in numbers.
        size: Height and width of the map.

    Returns:
        Truth values (kernel height, kernel width). Where they are false, the weights meet padding alone.
    """
    sides = []
    for side, extent in enumerate(size):
        stride, padding, dilation = conv.stride[side], int(conv.padding[side]), conv.dilation[side]
        taps = torch.arange(conv.kernel_size[side]) * dilation
        starts = torch.arange(-padding, extent + padding - int(taps[-1]), stride)
        places = taps[:, None] + starts
        sides.append(((places >= 0) & (places < extent)).any(1))
    return sides[0][:, None] & sides[1]


@contextmanager
def unmet_taps_at_rest(module: nn.Module) -> Iterator[None]:
    """Keep the gradients of taps that meet padding alone at zero, what they are.

    In bfloat16 on CPUs, oneDNN's kernels (3.13, maps of 1x1) multiply memory that nobody wrote by the zeros there, and
    where its bits happen to be those of a NaN, so is the gradient.

    Args:
        module: Trained in this context; its weights must ask for gradients already.
    """
    with ExitStack() as hooks:
        for conv in module.modules():
            # subclasses may pad by themselves
            if type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
                for handle in _Rest(conv).handles:
                    hooks.callback(handle.remove)
        yield


class _Rest:
    """What a convolution has seen, and the hooks that look."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.sizes: set[tuple[int, int]] = set()
        self.unmet: Tensor | None = None
        self.handles: list[Any] = []
        if max(conv.kernel_size) > 1 and conv.weight.requires_grad:
            self.handles = [conv.register_forward_pre_hook(self._look), conv.weight.register_hook(self._rest)]

    def _look(self, conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        if (height, width) in self.sizes:
            return
        self.sizes.add((height, width))
        met = torch.stack([taps_on_map(self.conv, size) for size in self.sizes]).any(0)
        self.unmet = None if met.all() else ~met.to(inputs[0].device)

    def _rest(self, gradient: Tensor) -> Tensor | None:
        return None if self.unmet is None else gradient.masked_fill(self.unmet, 0.0)
