"""A convolution on a tiny map is a matrix product."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from netgraft.training.fusion import DenseConvolution, with_dense_convolutions


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 3), (4, 1)])
@pytest.mark.parametrize(
    "layer",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 5), "padding": (1, 2)},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 5, "padding": 4, "stride": (1, 2)},
    ],
)
def test_values_and_gradients_are_the_convolutions(layer: dict[str, object], size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, bias=bias, **layer).double()  # type: ignore[arg-type]
    maps = torch.randn(5, 3, *size, dtype=torch.float64).requires_grad_()
    twin = maps.detach().clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    expected, got = convolution(maps), DenseConvolution(convolution, size)(twin)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    slope = torch.randn_like(expected)
    expected.backward(slope)
    got.backward(slope)
    torch.testing.assert_close(twin.grad, maps.grad, atol=1e-12, rtol=1e-12)


def test_another_size_is_refused() -> None:
    dense = DenseConvolution(nn.Conv2d(3, 4, 3, padding=1), (2, 2))
    with pytest.raises(ValueError, match=r"expected maps of \(2, 2\), got \(3, 2\)"):
        dense(torch.zeros(1, 3, 3, 2))


class Twice(nn.Module):
    """Calls one layer on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.max_pool2d(self.layer(maps), 2))


def test_only_plain_convolutions_on_maps_smaller_than_their_kernel_are_replaced() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 4x4: no
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1),  # 2x2, but one position a kernel: no
        nn.Conv2d(4, 4, 3, padding=1, groups=2),  # no
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),  # no
        nn.Conv2d(4, 4, 3, padding="same"),  # no
        nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()),  # yes
        Twice(),  # no
        nn.Conv2d(3, 5, 3, padding=1),  # 1x1: yes
    ).double()
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plain = copy.deepcopy(network)
    dense = with_dense_convolutions(network, images)
    replaced = {name for name, module in dense.named_modules() if isinstance(module, DenseConvolution)}
    assert replaced == {"6.0", "8"}
    torch.testing.assert_close(dense(images), plain(images), atol=1e-12, rtol=1e-12)
