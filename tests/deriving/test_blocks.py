"""Residual blocks and branches: found by what they do without weights, proven, priced and left out."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from netgraft.deriving.absence import leave_out, left_out
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.costs import Macs, Parameters
from netgraft.deriving.following import follow_channels
from netgraft.deriving.narrowing import narrow, proven_blocks
from netgraft.deriving.places import find_blocks
from netgraft.evaluation.metrics import macs
from netgraft.modules import parameters
from tests.support.derivable import Head, conv, randomised

PROBE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def transformer(depth: int = 2) -> nn.Module:
    options: dict[str, Any] = {"img_size": 32, "num_classes": 5, "embed_dim": 24, "num_heads": 3, "depth": depth}
    return timm.create_model("vit_tiny_patch16_224", **options).eval()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar_resnet20", ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]),
        ("cifar_vgg16_bn", []),  # one layer behind the other
    ],
)
def test_residual_blocks_are_found(name: str, expected: list[str]) -> None:
    import netgraft.zoo  # noqa: F401

    model = timm.create_model(name).eval()
    found = find_blocks(model, follow_channels(model, PROBE))
    assert [block.name for block in found] == expected
    assert not any(block.is_branch for block in found)


def test_branches_of_transformers_are_found_and_not_the_blocks_around_them() -> None:
    model = transformer()
    found = find_blocks(model, follow_channels(model, PROBE))
    assert [block.name for block in found] == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    assert all(block.is_branch for block in found)


@pytest.mark.parametrize("name", ["cifar_resnet8", "transformer"])
def test_what_is_left_out_costs_nothing_and_what_is_left_is_counted(name: str) -> None:
    import netgraft.zoo  # noqa: F401

    model = transformer() if name == "transformer" else timm.create_model(name).eval()
    anatomy = Anatomy.of(model, PROBE)
    block = anatomy.blocks[-1]
    shorter = narrow(model, anatomy.found, {block.atom: torch.arange(0)}, anatomy.blocks)
    widths = {block.atom: 0}
    assert Macs(anatomy.found, anatomy.blocks)(widths) == macs(shorter, (3, 32, 32))
    assert Parameters(anatomy.found, model, anatomy.blocks)(widths) == parameters(shorter) < parameters(model)
    assert left_out(shorter) == {block.name: "nothing" if block.is_branch else "passed"}


class Gated(nn.Module):
    """A residual block beside a number that is read off its weights elsewhere: leaving it out changes more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), Head(8)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        state = self.stem(x)
        return self.head(state + self.branch(state) + len(list(self.branch.parameters())))


def test_a_block_that_something_else_counts_on_is_not_proven() -> None:
    model = randomised(Gated())
    blocks = find_blocks(model, follow_channels(model, PROBE))
    assert [block.name for block in blocks] == ["branch"]
    assert blocks[0].is_branch
    assert proven_blocks(model, blocks, PROBE) == []


def test_what_stands_in_the_place_of_a_block_takes_its_arguments() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    leave_out(model, {"0": "passed", "1": "nothing"})
    state = torch.randn(2, 3, 4, 4)
    assert torch.equal(model[0](state, None, mask=None), state)
    assert torch.equal(model[1](state, 1), torch.zeros_like(state))


@pytest.mark.parametrize("absent", [{"2": "passed"}, {"": "passed"}, {"0": "gone"}])
def test_what_is_not_there_cant_be_left_out(absent: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="to leave out as"):
        leave_out(nn.Sequential(nn.Conv2d(3, 3, 1)), absent)


class ReturnsNothing(nn.Sequential):
    """Its ``train`` gives nothing back, as that of some of timm's attentions."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def test_a_module_whose_train_returns_nothing_is_a_block_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, 8), Head(8)
            self.branch = ReturnsNothing(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            state = self.stem(x)
            return self.head(state + self.branch(state))

    model = randomised(Model())
    blocks = find_blocks(model, follow_channels(model, PROBE))
    assert [block.name for block in proven_blocks(model, blocks, PROBE)] == ["branch"]
