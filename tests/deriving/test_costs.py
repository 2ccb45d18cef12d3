"""Costs against what is counted on models that are really narrowed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft import modules
from netgraft.deriving.costs import Macs, Parameters
from netgraft.deriving.following import follow_channels
from netgraft.deriving.narrowing import narrow, proven_places
from netgraft.deriving.places import find_places
from netgraft.modules import flop_counter
from tests.support.derivable import NETWORKS, followed, images, network
from tests.support.random_models import build


def counted(model: nn.Module, size: int) -> int:
    with flop_counter() as counter:
        model(images(1, side=size))
    return counter.get_total_flops() // 2


@torch.no_grad()
def agree(model: nn.Module, size: int, seeds: int) -> None:
    probe = images(2, side=size)
    found = follow_channels(model, probe)
    places = proven_places(model, found, find_places(found), probe)
    macs, parameters = Macs(found, 2), Parameters(found, model)
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
