"""Channels followed through forwards: against hooks that zero them, and what can't be followed stays whole."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.deriving.axes import Axis
from netgraft.deriving.following import ChannelMap, follow_channels
from netgraft.deriving.narrowing import is_proven, narrow
from netgraft.deriving.places import Place
from netgraft.errors import RequestError
from tests.support.derivable import (
    NETWORKS,
    Head,
    all_but,
    conv,
    followed,
    images,
    network,
    randomised,
)

# by hand, from the networks' code: name of a place and its width
PLACES = {
    "plain": {"0.0": 8, "1.0": 16},
    "residual": {"0.0": 8, "1.conv1.0": 8, "2.conv1.0": 12, "2.conv2.0": 12},
    "inverted": {"0.0": 6, "1.body.0.0": 18, "1.body.2.reduce": 4, "2.0": 8},
    # groups, channels within a group
    "grouped": {"0.0": 4, "0.0#2": 4, "1.0": 6},
    "dense": {"0.first.0": 8, "0.second.0": 4, "0.third.0": 6},
    "transformer": {"attention.qkv": 3, "mlp.0": 20},
    "gated": {"attention.qkv": 3, "mlp.fc1": 12},
    "flattened": {"0.0": 8, "3": 10},
    "responses": {"0.0": 8, "1": 16, "3.0": 8},
}


@pytest.mark.parametrize("kind", PLACES)
def test_all_channels_that_can_go_are_found_and_no_others(kind: str) -> None:
    _, places = followed(network(kind))

    assert {place.name: place.width for place in places} == PLACES[kind]


def mask_readers(model: nn.Module, found: ChannelMap, place: Place, gone: int) -> nn.Module:
    """Return a copy in which hooks set a channel to zero wherever a layer reads it, or a norm takes a mean over it."""
    masked = copy.deepcopy(model)
    norms = [(name, axis) for name, axis in found.response_norms.items() if place.atom in axis.atoms()]
    for name, axis in [*((reader.layer, reader.inputs) for reader in place.readers), *norms]:
        positions = axis.positions_of(place.atom)[gone]
        layer = masked.get_submodule(name)
        dim = 1 if isinstance(layer, nn.Conv2d | GlobalResponseNorm) else -1

        def zero(module: nn.Module, args: tuple[Tensor], at: Tensor = positions, dim: int = dim) -> tuple[Tensor]:
            return (args[0].index_fill(dim, at, 0),)

        layer.register_forward_pre_hook(zero)
    return masked


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_model_without_a_channel_gives_what_it_gives_when_nobody_reads_the_channel(kind: str) -> None:
    model, probe = network(kind).double(), images().double()
    found, places = followed(network(kind))
    whole = model(probe)

    for place in places:
        change = 0.0
        for gone in range(0, place.width, -(-place.width // 4)):
            got = narrow(model, found, {place.atom: all_but(place, gone)})(probe)
            torch.testing.assert_close(got, mask_readers(model, found, place, gone)(probe), rtol=0, atol=1e-10)
            change = max(change, float((got - whole).abs().max()))
        assert change > 1e-6, "some channel does something"


class Doing(nn.Module):
    """A function between two layers, and two layers that nothing lies between."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(channels, 8)
        self.head = Head(8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.function(self.first(x))))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.fft.fft(x, dim=1).real,
        lambda x: x.cumsum(1),
        lambda x: x.index_select(1, torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])),
        lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]],
        lambda x: x.gather(1, torch.arange(8).flip(0).view(1, 8, 1, 1).expand(x.shape)),
        lambda x: x.sort(dim=1).values,
        lambda x: x.flip(1),
        lambda x: x.roll(1, 1),
        lambda x: x.softmax(1),
        lambda x: x / x.norm(dim=1, keepdim=True),
        lambda x: x / x.norm(p=2.0, dim=1, keepdim=True),
        lambda x: F.normalize(x, dim=1),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x * (x.amax(1, keepdim=True) > 0.5),
        lambda x: x / (1 + x.var(1, keepdim=True)),
        lambda x: F.group_norm(x, 2),
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
        lambda x: F.local_response_norm(x, 3),
        lambda x: x[:, ::2].repeat(1, 2, 1, 1),
        lambda x: F.pad(x[:, :6], (0, 0, 0, 0, 1, 1)),
        lambda x: (
            F.avg_pool2d(x.flatten(2).transpose(1, 2)[:, None], (1, 3), 1, (0, 1))[:, 0].transpose(1, 2).view_as(x)
        ),
        lambda x: torch.zeros(x.shape, dtype=x.dtype).copy_(x),
        lambda x: torch.einsum("bchw,cd->bdhw", x, 1 + torch.eye(8, dtype=x.dtype)),
    ],
)
def test_channels_that_a_function_mixes_stay_whole_and_the_others_do_not(function: Callable[[Tensor], Tensor]) -> None:
    model = randomised(Doing(function))
    found, places = followed(model)

    assert [place.name for place in places] == ["second.0"]
    assert is_proven(model, found, {places[0].atom: all_but(places[0], 0, 3)}, images())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.gelu(x) + F.hardswish(x) * x.sigmoid(),
        lambda x: x / (1 + x.norm(p=2.0, dim=(2, 3), keepdim=True)),
        lambda x: F.prelu(x, torch.tensor([0.2], dtype=x.dtype)) + F.logsigmoid(x),
        lambda x: torch.zeros_like(x).copy_(x),
        lambda x: x.flatten(2).permute(2, 0, 1).reshape(8, 8, *x.shape[:2]).permute(2, 3, 0, 1),
        lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear"),
        lambda x: torch.stack([x, x]).sum(0),
        lambda x: torch.where(x > 0, x, x.exp()),
        lambda x: x.masked_fill(x < 0.1, 0.5),
        lambda x: x.roll((1, 1), (2, 3)),
        lambda x: x.clone().add_(x.amax((2, 3), keepdim=True)),
        lambda x: x.split(3, dim=2)[0].mean(2, keepdim=True) + x,
    ],
)
def test_channels_that_a_function_keeps_apart_are_followed_through_it(function: Callable[[Tensor], Tensor]) -> None:
    model = randomised(Doing(function))
    found, places = followed(model)

    assert [place.name for place in places] == ["first.0", "second.0"]
    assert is_proven(model, found, {place.atom: all_but(place, 0, 3) for place in places}, images())


def test_what_a_layer_norm_or_a_softmax_sees_is_no_place_nor_are_images_and_logits() -> None:
    found, places = followed(network("transformer"))
    atoms = {place.atom for place in places}

    for name, dim in {"embed.weight": 1, "norm1.weight": 0, "mlp.2.weight": 0, "head.weight": 0, "position": 1}.items():
        assert not atoms & set(found.tensors[name][dim].atoms()), name
    embed = found.tensors["embed.weight"]
    assert all(atom.fixed for axis in embed for atom in axis.atoms())


class Shared(nn.Module):
    """A layer that is called twice, or two layers of one weight."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.first, self.norm1, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.second = self.first
        if kind == "weight":
            self.second = nn.Conv2d(8, 8, 3, padding=1)
            self.second.weight = self.first.weight
        if kind == "norm":
            self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), self.norm1
        self.last, self.head = conv(8, 12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.first(self.stem(x))))
        return self.head(self.last(F.relu(self.norm2(self.second(x)))))


@pytest.mark.parametrize("kind", ["module", "weight", "norm"])
def test_layers_that_share_are_narrowed_as_one(kind: str) -> None:
    model = randomised(Shared(kind))
    found, places = followed(model)

    assert "last.0" in {place.name for place in places}
    assert is_proven(model, found, {place.atom: all_but(place, 1, 2) for place in places}, images())
    assert not {"first", "second"} & found.norms.keys(), "nobody can add a constant to one of two calls"


class Uneven(nn.Module):
    def __init__(self, cut: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.head = conv(3, 16), conv(8, 8), conv(8, 8), Head(16)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.cut(self.stem(x))
        return self.head(torch.cat([self.left(left), self.right(right)], 1))


def test_equal_pieces_stay_equal() -> None:
    model = randomised(Uneven(lambda x: x.chunk(2, dim=1)))
    found, places = followed(model)

    assert [place.name for place in places] == ["stem.0", "left.0", "right.0"]
    for gone in (1, 3, 5):
        assert is_proven(model, found, {places[0].atom: all_but(places[0], *range(gone))}, images())


class Transposed(nn.Module):
    """Multiplies with a layer's weight from its other side too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.head = conv(3, 8), nn.Linear(8, 12), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.fc(self.stem(x).mean((2, 3)))) @ self.fc.weight)


def test_a_weight_that_is_used_the_other_way_round_is_no_reader() -> None:
    model = randomised(Transposed())
    found, places = followed(model)

    products = [(product.layer, product.inputs.size, product.outputs.size) for product in found.products[1:]]
    assert products == [("fc", 8, 12), ("", 12, 8), ("head", 8, 5)]
    assert is_proven(model, found, {place.atom: all_but(place, 0) for place in places}, images())


def test_a_norm_is_behind_a_layer_only_if_it_alone_takes_in_all_that_the_layer_gives() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.norm1 = nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8)
            self.fc2, self.norm2 = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
            self.fc3, self.norm3 = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc1(x.flatten(2).transpose(1, 2)[:, :8])
            x = self.norm1(x.flatten(0, 1)).view_as(x)
            x = self.fc2(x)
            x = self.norm2(x.flatten(0, 1)).view_as(x) + x
            # over tokens, of which there happen to be as many
            return self.head(self.norm3(self.fc3(x)).mean(1))

    assert follow_channels(randomised(Skips()), images()).norms == {"fc1": "norm1"}


def test_a_buffer_that_is_not_saved_stays_whole() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = conv(3, 8), conv(8, 8), Head(8)
            self.register_buffer("scale", torch.rand(1, 8, 1, 1) + 0.5, persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x) * self.scale))

    assert [place.name for place in followed(randomised(Scaled()))[1]] == ["second.0"]


def test_a_forward_that_fails_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        RequestError, match=r"^Sequential could not be followed on images \(2, 3, 8, 8\) \(RuntimeError: "
    ):
        follow_channels(nn.Sequential(nn.Conv2d(4, 8, 3)), images())


def test_a_model_is_left_as_it_was() -> None:
    model = network("plain").train()
    before = copy.deepcopy(model.state_dict())
    follow_channels(model, images())

    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_an_axis_of_each_output_is_noted() -> None:
    model = network("plain")
    found = follow_channels(model, images())

    assert [axis.size for axis in found.outputs["1"]] == [2, 16, 8, 8]
    assert isinstance(found.outputs["1"][1], Axis)
    assert found.outputs["1"][1].segments == found.tensors["1.1.bias"][0].segments
