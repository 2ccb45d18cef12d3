"""Weights that meet padding alone get no gradient, whatever computes it; all others get theirs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from netgraft.training.onednn_workaround import taps_on_map, unmet_taps_at_rest

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 5, "padding": 2, "stride": 2},
    {"kernel_size": 5, "padding": 3, "stride": 3},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (1, 7), "padding": (0, 3)},
    {"kernel_size": (7, 3), "padding": (4, 2), "stride": (1, 2), "dilation": (1, 2)},
]


def gradient_of_ones(conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """How often each tap meets a place of the map: the gradient where all that is summed is positive."""
    twin = copy.deepcopy(conv).double()
    twin(torch.ones(1, conv.in_channels, *size, dtype=torch.float64)).sum().backward()
    assert twin.weight.grad is not None
    return twin.weight.grad[0, 0]


@pytest.mark.parametrize("settings", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 3), (4, 4), (5, 9)])
def test_taps_on_the_map_are_those_with_a_gradient(settings: dict[str, int], size: tuple[int, int]) -> None:
    conv = nn.Conv2d(1, 1, bias=False, **settings)  # type: ignore[arg-type]
    assert torch.equal(taps_on_map(conv, size), gradient_of_ones(conv, size) > 0)


@pytest.fixture
def network() -> nn.Sequential:
    """A convolution whose gradient is not a number at two taps: one that meets the map, one that doesn't."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Flatten())


def spoil(conv: nn.Module, *taps: tuple[int, int]) -> None:
    def hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        for row, column in taps:
            gradient[:, 1, row, column] = torch.nan
        return gradient

    conv.weight.register_hook(hook)  # type: ignore[operator]


def test_what_is_not_a_number_at_a_tap_on_padding_becomes_zero(network: nn.Sequential) -> None:
    spoil(network[0], (1, 2), (0, 0))
    with unmet_taps_at_rest(network):
        network(torch.randn(5, 2, 1, 1)).sum().backward()
    gradient = network[0].weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient[:, :, 1, 1].abs().min() > 0
    gradient[:, :, 1, 1] = 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_is_not_a_number_at_a_tap_on_the_map_stays(network: nn.Sequential) -> None:
    spoil(network[0], (1, 1), (0, 0))
    with unmet_taps_at_rest(network):
        network(torch.randn(5, 2, 1, 1)).sum().backward()
    gradient = network[0].weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient[:, 1, 1, 1].isnan().all()
    assert not gradient[:, 1, 0, 0].isnan().any()


def test_a_tap_that_met_any_map_keeps_its_gradient(network: nn.Sequential) -> None:
    small, large = torch.randn(5, 2, 1, 1), torch.randn(5, 2, 2, 2)
    twin = copy.deepcopy(network)
    for inputs in (small, large):
        twin(inputs).sum().backward()
    with unmet_taps_at_rest(network):
        for inputs in (small, large):
            network(inputs).sum().backward()
    for mine, plain in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(torch.as_tensor(mine.grad), torch.as_tensor(plain.grad))


def test_nothing_stays_on_the_network(network: nn.Sequential) -> None:
    with unmet_taps_at_rest(network):
        network(torch.randn(1, 2, 1, 1))
    for layer in network.modules():
        assert not layer._forward_pre_hooks
    assert not network[0].weight._backward_hooks


class PadsItself(nn.Conv2d):
    """Like TensorFlow's convolutions in timm: what the kernel meets is not what comes in."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (1, 1, 1, 1), value=1.0))


@pytest.mark.parametrize(
    "conv",
    [
        PadsItself(2, 3, 3),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 3, 3, padding="same"),
    ],
)
def test_other_paddings_are_left_alone(conv: nn.Conv2d) -> None:
    inputs = torch.randn(2, 2, 2, 2)
    conv(inputs).sum().backward()
    expected = torch.as_tensor(conv.weight.grad).clone()
    conv.weight.grad = None
    with unmet_taps_at_rest(conv):
        conv(inputs).sum().backward()
    assert torch.equal(torch.as_tensor(conv.weight.grad), expected)
