"""A model taken apart: blocks, layers, and what can't be narrowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netgraft.deriving.anatomy import Anatomy, segment_of_layers, states_in_front
from netgraft.errors import RequestError
from tests.support.derivable import NETWORKS, Head, conv, images, network, randomised


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_blocks_share_the_weights_of_the_model_and_give_its_bits(kind: str) -> None:
    model = network(kind)
    anatomy = Anatomy.of(model, images())
    blocks = anatomy.segments_of(model)
    states = states_in_front(blocks, images(3))

    assert len(states) == len(blocks) + 1
    assert torch.equal(states[-1], model(images(3)))
    layers = {name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert segment_of_layers(blocks, model).keys() == layers
    assert {product.layer for product in anatomy.layers} == layers
    assert list(segment_of_layers(blocks, model).values()) == sorted(segment_of_layers(blocks, model).values())


def test_a_layer_in_several_blocks_counts_for_the_first() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)

    assert segment_of_layers([nn.Sequential(shared), nn.ReLU(), nn.Sequential(shared)], model) == {"0": 0}


def test_layers_are_in_the_order_of_the_forward_each_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.again, self.stem = Head(8), nn.Conv2d(8, 8, 1), conv(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.again(self.stem(x))))

    anatomy = Anatomy.of(randomised(Twice()), images())

    assert [product.layer for product in anatomy.layers] == ["stem.0", "again", "head.fc"]
    assert anatomy.called_once == {"stem.0", "head.fc"}


def test_a_norm_is_that_of_the_model_asked_for() -> None:
    model, other = network("plain"), network("plain", seed=1)
    anatomy = Anatomy.of(model, images())

    assert anatomy.norm_behind(other, "0.0") is other.get_submodule("0.1")
    assert anatomy.norm_behind(other, "2.fc") is None


def test_a_model_without_places_is_refused_in_a_sentence() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

    with pytest.raises(RequestError, match=r"^Sequential has nothing that could become narrower: no channels"):
        Anatomy.of(model, images())


@pytest.mark.parametrize("name", ["0.0.weight", "0.1.running_mean"])
def test_weights_that_are_no_numbers_are_refused_in_a_sentence(name: str) -> None:
    model = network("plain")
    model.state_dict()[name].view(-1)[0] = torch.nan

    with pytest.raises(
        RequestError, match=rf"^Sequential can't become narrower: .* that are no numbers, first in {name};"
    ):
        Anatomy.of(model, images())


def test_taking_apart_changes_nothing() -> None:
    model = network("residual").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    anatomy = Anatomy.of(model, images())
    assert anatomy.segments_of(model)

    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
