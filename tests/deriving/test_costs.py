"""Costs against what is counted on models that are really narrowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netgraft import modules
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.costs import Macs, Parameters
from netgraft.deriving.following import follow_channels
from netgraft.deriving.narrowing import narrow, proven_places
from netgraft.deriving.places import find_places
from netgraft.modules import flop_counter
from tests.support.derivable import NETWORKS, Head, conv, followed, images, network, randomised
from tests.support.random_models import build


def counted(model: nn.Module, size: int) -> int:
    with flop_counter() as counter:
        model(images(1, side=size))
    return counter.get_total_flops() // 2


@torch.no_grad()
def agree(model: nn.Module, size: int, seeds: int) -> None:
    probe = images(2, side=size)
    found = follow_channels(model, probe[:1])
    places = proven_places(model, found, find_places(found), probe)
    macs, parameters = Macs(found), Parameters(found, model)
    assert macs({}) == counted(model, size)
    assert parameters({}) == modules.parameters(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(seeds):
        widths = {place.atom: int(torch.randint(1, place.width + 1, (), generator=generator)) for place in places}
        narrowed = narrow(model, found, {atom: torch.arange(width) for atom, width in widths.items()})
        assert macs(widths) == counted(narrowed, size)
        assert parameters(widths) == modules.parameters(narrowed)


@pytest.mark.parametrize("kind", NETWORKS)
def test_costs_of_small_networks(kind: str) -> None:
    assert followed(network(kind))[1]
    agree(network(kind), 8, 4)


@pytest.mark.parametrize(("name", "size"), [("mobilenetv3_small_050", 32), ("regnety_002", 32), ("cifar_resnet8", 32)])
def test_costs_of_models_that_people_use(name: str, size: int) -> None:
    agree(build(name, num_classes=7), size, 1)


def test_what_is_computed_once_a_batch_counts_once() -> None:
    class Embedded(nn.Module):
        """Adds an embedding of positions that is made by a layer of its own, whatever the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, 8), Head(8)
            self.embedding = nn.Sequential(nn.Conv2d(2, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))

        def forward(self, x: Tensor) -> Tensor:
            state = self.stem(x)
            return self.head(torch.relu(state + self.embedding(x.new_ones(1, 2, *state.shape[2:]))))

    model = randomised(Embedded())
    anatomy = Anatomy.of(model, images())
    [place] = [place for place in anatomy.places if place.name == "embedding.0"]
    narrower = narrow(model, anatomy.found, {place.atom: torch.arange(5)})
    assert Macs(anatomy.found)({}) == counted(model, 8)
    assert Macs(anatomy.found)({place.atom: 5}) == counted(narrower, 8)


@pytest.mark.parametrize("groups", [1, 4])
def test_transposed_convolutions_stay_whole_and_are_counted(groups: int) -> None:
    upsampling = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=groups)
    model = randomised(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 8), upsampling, Head(8)))
    assert followed(model)[1], "the layer in front of them can become narrower"
    agree(model, 8, 2)
