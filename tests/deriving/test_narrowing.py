"""A narrowed copy is what it claims to be, and what would be wrong is found."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.narrowing import is_proven, narrow, proven_places, without
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


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_all_places_at_once_give_what_zeros_give(kind: str) -> None:
    model, probe = network(kind).double(), images().double()
    found, places = followed(network(kind))
    generator = torch.Generator().manual_seed(3)
    kept = {}
    for place in places:
        count = int(torch.randint(1, place.width, (), generator=generator))
        kept[place.atom] = torch.randperm(place.width, generator=generator)[:count].sort().values

    narrowed, masked = narrow(model, found, kept), without(model, found, kept)

    torch.testing.assert_close(narrowed(probe), masked(probe), rtol=0, atol=1e-10)
    assert not torch.allclose(masked(probe), model(probe))


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_keeping_all_gives_the_same_bits(kind: str) -> None:
    model = network(kind)
    found, places = followed(model)
    narrowed = narrow(model, found, {place.atom: torch.arange(place.width) for place in places})

    assert torch.equal(narrowed(images()), model(images()))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in narrowed.state_dict().items())


@torch.no_grad()
def test_a_norm_of_responses_divides_by_the_mean_that_zeros_would_give() -> None:
    torch.manual_seed(0)
    layer, norm, reader = nn.Conv2d(3, 8, 1), GlobalResponseNorm(8, eps=0.5, channels_last=False), nn.Conv2d(8, 2, 1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(layer, norm, reader).double()
    found, [place] = followed(copy.deepcopy(model).float())
    kept = torch.tensor([0, 3, 6])

    narrowed = narrow(model, found, {place.atom: kept})

    # Woo et al., "ConvNeXt V2", CVPR 2023, algorithm 1; the five others are zero
    x = torch.einsum("oc,bchw->bohw", layer.weight[kept, :, 0, 0], images().double()) + layer.bias[kept, None, None]  # type: ignore[index]
    size = x.square().sum((2, 3), keepdim=True).sqrt()
    y = norm.weight[kept, None, None] * x * (size / (size.sum(1, keepdim=True) / 8 + 0.5)) + norm.bias[kept, None, None]
    expected = torch.einsum("oc,bchw->bohw", reader.weight[:, kept, 0, 0], x + y) + reader.bias[:, None, None]  # type: ignore[index]
    torch.testing.assert_close(narrowed(images().double()), expected, rtol=0, atol=1e-12)
    assert place.acts_without_weights


def test_layers_say_the_sizes_of_their_weights() -> None:
    model = network("grouped")
    found, places = followed(model)
    narrowed = narrow(model, found, {places[0].atom: torch.tensor([1, 2, 3]), places[2].atom: all_but(places[2], 0)})
    layer = narrowed.get_submodule("1.0")

    assert isinstance(layer, nn.Conv2d)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (12, 15, 3)
    assert narrowed.get_submodule("1.1").num_features == 15
    assert narrowed.get_submodule("2.fc").in_features == 15


def test_the_model_stays_as_it_was() -> None:
    model = network("residual").train()
    model.get_submodule("0").eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    found, places = followed(model)
    proven_places(model, found, places, images())
    narrowed = narrow(model, found, {places[0].atom: all_but(places[0], 0)})
    for parameter in narrowed.parameters():
        parameter.data.zero_()

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class HardCoded(nn.Module):
    """Its forward counts on one of its widths."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(3, 8), conv(8, 8), conv(8, 12), conv(12, 8), conv(8, 8)])
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 2:
                x = x.flatten(2).view(len(x), 12, 8, 8)
        return self.head(x)


def test_the_one_bad_place_is_found_among_good_ones() -> None:
    model = randomised(HardCoded())
    found, places = followed(model)
    names = [place.name for place in places]
    assert names == [f"layers.{number}.0" for number in range(5)]

    proven = proven_places(model, found, places, images())

    assert [place.name for place in proven] == [name for name in names if name != "layers.2.0"]
    assert not is_proven(model, found, {places[2].atom: torch.arange(6)}, images())


class Halved(nn.Module):
    """Takes what it has by halves: two places that are right only if they are narrowed alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.head = conv(3, 16), conv(8, 8), conv(8, 8), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = x.shape[1] // 2
        return self.head(torch.cat([self.left(x[:, :half]), self.right(x[:, half:])], 1))


def test_places_that_are_right_only_together_are_left_out() -> None:
    model = randomised(Halved())
    found, places = followed(model)
    assert [place.name for place in places] == ["stem.0", "stem.0#2", "left.0", "right.0"]

    proven = proven_places(model, found, places, images())

    assert [place.name for place in proven] == ["left.0", "right.0"]


class Alternatives(nn.Module):
    """Either of two places may be narrowed, but not both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        if first.shape[1] < 8 and second.shape[1] < 8:
            raise ValueError("too narrow")
        return self.head(second)


def test_places_that_are_right_only_apart_are_not_proven_together() -> None:
    model = randomised(Alternatives())
    found, places = followed(model)

    assert len(places) == 2
    assert len(proven_places(model, found, places, images())) == 1


def test_a_fused_kernel_hides_its_readers() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.mlp, self.head = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x.flatten(2).transpose(1, 2))
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.head(self.mlp(x).mean(1))

    anatomy = Anatomy.of(randomised(Encoder()), images())

    assert "mlp.0" in {place.name for place in anatomy.places}
