"""Connectors: shapes, numbers of parameters in closed form, and what each layer is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netgraft.grafting.adapters import Projector
from netgraft.methods.connectors import BoundaryConnector, NormalizedRegressor, Paraphraser, Regressor, Translator

WIDTHS = [(3, 5), (5, 3), (4, 4), (1, 1)]

KINDS: list[Callable[[int, int], nn.Module]] = [Regressor, Projector, BoundaryConnector, Translator]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4)])
@pytest.mark.parametrize(("first", "second"), WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_widths_change_and_sizes_stay(
    kind: Callable[[int, int], nn.Module], first: int, second: int, size: tuple[int, int]
) -> None:
    assert kind(first, second)(torch.randn(2, first, *size)).shape == (2, second, *size)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4)])
@pytest.mark.parametrize(("channels", "rate", "expected"), [(6, 0.5, 3), (1, 0.5, 1), (8, 0.1, 1), (4, 2.0, 8)])
def test_paraphraser_has_a_factor_of_its_rate(channels: int, rate: float, expected: int, size: tuple[int, int]) -> None:
    paraphraser, maps = Paraphraser(channels, rate), torch.randn(2, channels, *size)
    assert paraphraser.factor_channels == expected
    assert paraphraser.encode(maps).shape == (2, expected, *size)
    assert paraphraser(maps).shape == maps.shape


@pytest.mark.parametrize(("first", "second"), WIDTHS)
def test_numbers_of_parameters_in_closed_form(first: int, second: int) -> None:
    assert parameters(Regressor(first, second)) == first * second + second
    assert parameters(Projector(first, second)) == first * second
    assert parameters(BoundaryConnector(first, second)) == first * second + 2 * second
    norms = 2 * (first + second + second)
    encoder = 9 * (first * first + first * second + second * second) + norms
    assert parameters(Translator(first, second)) == encoder
    decoder = 9 * (second * second + second * first + first * first) + 2 * (second + first + first)
    assert parameters(Paraphraser(first, second / first)) == encoder + decoder


@pytest.mark.parametrize("kind", [*KINDS, lambda channels, factor: Paraphraser(channels, factor / channels)])
def test_gradients_reach_every_parameter(kind: Callable[[int, int], nn.Module]) -> None:
    torch.manual_seed(0)
    module = kind(6, 4)
    outputs = module(torch.randn(4, 6, 3, 5))
    (outputs * torch.randn_like(outputs)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_projector_starts_as_the_identity_where_widths_are_equal() -> None:
    maps = torch.randn(2, 4, 3, 5)
    assert torch.equal(Projector(4, 4)(maps), maps)
    assert not Projector(4, 3).weight[:3, :3, 0, 0].equal(torch.eye(3))


def test_projector_maps_zeros_to_zeros_and_the_regressor_either_sign() -> None:
    assert not Projector(4, 3)(torch.zeros(1, 4, 2, 2)).any()
    regressor = Regressor(1, 2)
    with torch.no_grad():
        regressor.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        regressor.bias.copy_(torch.tensor([0.5, 0.0]))  # type: ignore[union-attr]
    assert regressor(torch.full((1, 1, 1, 1), 2.0)).flatten().tolist() == [2.5, -2.0]


def test_boundary_connector_normalises_its_outputs() -> None:
    outputs = BoundaryConnector(3, 5)(10 + 100 * torch.randn(8, 3, 4, 4))
    torch.testing.assert_close(outputs.mean((0, 2, 3)), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.var((0, 2, 3), unbiased=False), torch.ones(5), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("make", "transposed"), [(lambda: Translator(3, 2), 0), (lambda: Paraphraser(3, 0.7), 3)])
def test_layers_of_factor_transfer_are_those_of_the_article(make: Callable[[], nn.Module], transposed: int) -> None:
    module = make().eval()
    leaves = [leaf for leaf in module.modules() if not list(leaf.children())]
    forward = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 3
    backward = [nn.ConvTranspose2d, nn.BatchNorm2d, nn.LeakyReLU] * (transposed // 3) * 3
    assert [type(leaf) for leaf in leaves] == forward + backward
    maps = torch.randn(2, 3, 3, 5)
    outputs = module(maps)
    # the same, operation by operation; a fresh batch norm in eval mode divides by sqrt(1 + eps)
    for leaf in leaves:
        if isinstance(leaf, nn.ConvTranspose2d):
            maps = F.conv_transpose2d(maps, leaf.weight, padding=1)
        elif isinstance(leaf, nn.Conv2d):
            maps = F.conv2d(maps, leaf.weight, padding=1)
        elif isinstance(leaf, nn.BatchNorm2d):
            maps = maps / (1 + 1e-5) ** 0.5
        else:
            maps = torch.where(maps > 0, maps, 0.1 * maps)
    torch.testing.assert_close(outputs, maps)


def test_encoding_is_the_first_half_of_the_reconstruction() -> None:
    paraphraser, maps = Paraphraser(4).eval(), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(paraphraser.decoder(paraphraser.encode(maps)), paraphraser(maps))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "second"), [(0, 3), (3, 0), (-1, 3)])
def test_widths_below_one_are_refused(kind: Callable[[int, int], nn.Module], first: int, second: int) -> None:
    with pytest.raises(ValueError, match=f"must be integers of at least 1, not {first}, {second}"):
        kind(first, second)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_rates_and_widths_of_a_paraphraser_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate must be a finite number above 0, not {rate}"):
        Paraphraser(4, rate)
    with pytest.raises(ValueError, match="must be integers of at least 1, not 0"):
        Paraphraser(0)


def test_a_paraphraser_without_norms_has_biases_instead() -> None:
    plain, normed = Paraphraser(6, 0.5, norm=False), Paraphraser(6, 0.5)
    assert not [layer for layer in plain.modules() if isinstance(layer, nn.BatchNorm2d)]
    # a batch norm has a scale and a shift for each channel, a bias is the shift alone
    widths = 6 + 3 + 3 + 3 + 6 + 6
    assert sum(p.numel() for p in normed.parameters()) - sum(p.numel() for p in plain.parameters()) == widths


def test_a_normalised_regressor_is_the_equation() -> None:
    regressor = NormalizedRegressor(3, 5).double()
    maps = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    convolution = regressor[0]
    assert isinstance(convolution, nn.Conv2d)
    mixed = np.einsum("oi,bihw->bohw", convolution.weight.detach().numpy()[:, :, 0, 0], maps.numpy())
    mixed += convolution.bias.detach().numpy()[None, :, None, None]  # type: ignore[union-attr]
    mean, var = mixed.mean((0, 2, 3), keepdims=True), mixed.var((0, 2, 3), keepdims=True)
    expected = np.maximum((mixed - mean) / np.sqrt(var + 1e-5), 0)
    np.testing.assert_allclose(regressor.train()(maps).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 3), (3, 0)])
def test_widths_of_a_normalised_regressor_are_refused_too(first: int, second: int) -> None:
    with pytest.raises(ValueError, match=f"must be integers of at least 1, not {first}, {second}"):
        NormalizedRegressor(first, second)
