"""Works around a fault of oneDNN: gradients that are not numbers where a kernel meets nothing but padding.

In bfloat16 on CPUs with AVX-512, oneDNN's gradient of a convolution's weights (``jit_bf16:avx512_core_bf16``,
``backward_weights``) multiplies memory that nobody wrote by the zeros of the padding. Where the bits that lie there
happen to be those of a NaN or of an infinity, the gradient of those weights is one too, and the run ends in "no longer
finite". Right is zero: these weights never touch a picture. Seen on maps of 1x1, 3x3 kernels with stride 2 and 5x5 ones
with stride 1, and on maps of 1x2; with torch 2.14.1 (oneDNN 3.12.0).

The fault is not reported upstream as of November 2026; the place for it is https://github.com/uxlfoundation/oneDNN/issues.
``tests/training/test_onednn_workaround.py`` reproduces it, by filling freed memory with the bits of NaNs, and fails as
soon as it is gone: then this file can go too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def taps_on_map(conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Say which taps of a zero-padded convolution's kernel ever meet a map.

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
        positions = taps[:, None] + starts
        sides.append(((positions >= 0) & (positions < extent)).any(1))
    return sides[0][:, None] & sides[1]


@contextmanager
def zeroed_gradients_of_padding_taps(module: nn.Module) -> Iterator[None]:
    """Set the gradients of weights that meet padding alone to zero, what they are, whatever oneDNN makes of them.

    Args:
        module: Trained in this context; its weights must ask for gradients already.
    """
    with ExitStack() as hooks:
        for conv in module.modules():
            # subclasses may pad by themselves
            if type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
                for handle in _PaddingTaps(conv).handles:
                    hooks.callback(handle.remove)
        yield


class _PaddingTaps:
    """The taps of a convolution that have met padding alone so far, and the hooks that follow it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.sizes: set[tuple[int, int]] = set()
        self.mask: Tensor | None = None
        """True at those taps, (kernel height, kernel width); None where there are none."""
        self.handles: list[Any] = []
        if max(conv.kernel_size) > 1 and conv.weight.requires_grad:
            self.handles = [
                conv.register_forward_pre_hook(self._note_size),
                conv.weight.register_hook(self._zero_gradient),
            ]

    def _note_size(self, conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        if (height, width) in self.sizes:
            return
        self.sizes.add((height, width))
        on_map = torch.stack([taps_on_map(self.conv, size) for size in self.sizes]).any(0)
        self.mask = None if on_map.all() else ~on_map.to(inputs[0].device)

    def _zero_gradient(self, gradient: Tensor) -> Tensor | None:
        return None if self.mask is None else gradient.masked_fill(self.mask, 0.0)
