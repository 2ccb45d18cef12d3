"""Convolutions on maps smaller than their kernel, as matrix products."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseConvolution(nn.Module):
    """A frozen convolution on maps of one small size: (B, C, H, W) -> (B, O, H', W'), by one matrix product.

    Where a map has fewer positions than the kernel, most of a convolution's products are with padding: a 3x3 kernel on
    a 2x2 map multiplies 9 numbers for each output and channel, 4 of them not zero.

    Args:
        convolution: Without groups, zero-padded.
        size: H and W.
    """

    def __init__(self, convolution: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        kernel, stride, dilation = convolution.kernel_size, convolution.stride, convolution.dilation
        assert not isinstance(convolution.padding, str)
        padding, weight = convolution.padding, convolution.weight.detach()
        self.output_size = tuple(
            (size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(2)
        )
        # channels last, as the maps are: no values have to move
        matrix = weight.new_zeros(*self.output_size, weight.shape[0], *size, weight.shape[1])
        for end in product(*map(range, self.output_size)):
            for offset in product(*map(range, kernel)):
                start = tuple(end[a] * stride[a] - padding[a] + offset[a] * dilation[a] for a in range(2))
                if all(0 <= start[a] < size[a] for a in range(2)):
                    matrix[end[0], end[1], :, start[0], start[1], :] = weight[:, :, offset[0], offset[1]]
        outputs = matrix[..., 0, 0, 0].numel()
        self.weight = nn.Parameter(matrix.reshape(outputs, -1), requires_grad=False)
        positions = self.output_size[0] * self.output_size[1]
        bias = None if convolution.bias is None else convolution.bias.detach().repeat(positions)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve.

        Raises:
            ValueError: The maps have another size.
        """
        if tuple(maps.shape[2:]) != self.size:
            raise ValueError(f"expected maps of {self.size}, got {tuple(maps.shape[2:])}")
        outputs = F.linear(maps.permute(0, 2, 3, 1).flatten(1), self.weight, self.bias)
        return outputs.view(len(maps), *self.output_size, -1).permute(0, 3, 1, 2)


def with_dense_convolutions(network: nn.Module, example: Tensor) -> nn.Module:
    """Replace, in place, the convolutions that pay as matrix products on what ``network`` makes of ``example``."""
    sizes: dict[nn.Module, list[tuple[int, int]]] = defaultdict(list)

    def note(convolution: nn.Module, given: tuple[Tensor]) -> None:
        sizes[convolution].append((given[0].shape[2], given[0].shape[3]))

    small = {name: module for name, module in network.named_modules() if _is_plain(module)}
    handles = [module.register_forward_pre_hook(note) for module in small.values()]
    with torch.no_grad():
        network(example.clone())
    for handle in handles:
        handle.remove()
    for name, convolution in small.items():
        assert isinstance(convolution, nn.Conv2d)
        found = sizes[convolution]
        height, width = convolution.kernel_size
        if len(found) == 1 and found[0][0] * found[0][1] < height * width:
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, DenseConvolution(convolution, found[0]))
    return network


def _is_plain(module: nn.Module) -> bool:
    # by exact type: a subclass may do more with its weight than convolve
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
