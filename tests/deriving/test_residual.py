"""What is added behind a layer, against what the block itself computes."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

import netgraft.zoo  # noqa: F401  (registers the CIFAR-size models)
from netgraft.deriving.anatomy import Anatomy, segment_of_layers, states_in_front
from netgraft.deriving.residual import Seen, seen_in
from netgraft.modules import eval_mode


class Branch(nn.Module):
    """A layer, what stands behind it, and something else of the input that is added."""

    def __init__(self, layer: nn.Module, behind: nn.Module, *, last: bool = True, in_place: bool = False) -> None:
        super().__init__()
        self.layer, self.behind, self.last, self.in_place = layer, behind, last, in_place

    def forward(self, x: Tensor) -> Tensor:
        branch, shortcut = self.behind(self.layer(x.clone())), x.sin()
        if self.in_place:
            branch += shortcut
            return F.relu(branch, inplace=True)
        return branch + shortcut if self.last else shortcut + branch


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class ToFront(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def random_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 2.0)
    return norm


def check(block: nn.Module, x: Tensor, layer: nn.Module, scale: Tensor) -> Seen:
    """Return what is seen, once something is and the layer's output is scaled by this on its way."""
    with torch.no_grad(), eval_mode(block):
        seen = seen_in(block, x.clone(), layer)
        assert seen.addend is not None
        assert seen.addend.other.shape == seen.call.outputs.shape
        torch.testing.assert_close(seen.addend.scale, scale)
    return seen


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_the_shortcut_beside_a_convolution_and_its_norm(*, in_place: bool, last: bool) -> None:
    torch.manual_seed(0)
    norm = random_norm(6)
    block = Branch(nn.Conv2d(6, 6, 3, padding=1), nn.Sequential(norm, nn.Dropout(0.5)), last=last, in_place=in_place)
    x = torch.randn(4, 6, 5, 5)
    assert norm.running_var is not None
    seen = check(block, x, block.layer, norm.weight / (norm.running_var + norm.eps).sqrt())

    assert seen.addend is not None
    torch.testing.assert_close(seen.addend.other, x.sin())
    torch.testing.assert_close(seen.call.outputs, block.layer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.addend_rows(torch.tensor([0, 26])), x.sin()[[0, 1], :, 0, [0, 1]])


def test_the_shortcut_beside_a_linear_layer_on_tokens() -> None:
    torch.manual_seed(0)
    scale = LayerScale(6)
    block, x = Branch(nn.Linear(6, 6), nn.Sequential(nn.Dropout(0.1), scale)), torch.randn(4, 7, 6)
    seen = check(block, x, block.layer, scale.gamma)
    assert seen.addend is not None
    torch.testing.assert_close(seen.addend.other, x.sin())


def test_the_shortcut_in_another_order_of_dimensions() -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale, self.front = nn.Linear(6, 6), LayerScale(6), ToFront()

        def forward(self, x: Tensor) -> Tensor:
            return self.front(self.scale(self.layer(x.permute(0, 2, 3, 1)))) + x

    block, x = Block(), torch.randn(2, 6, 4, 5)
    seen = check(block, x, block.layer, block.scale.gamma)
    assert seen.addend is not None
    torch.testing.assert_close(seen.addend.other, x.permute(0, 2, 3, 1))


@pytest.mark.parametrize("behind", [nn.ReLU(), nn.ReLU(inplace=True), nn.Softmax(1), nn.GroupNorm(2, 6)])
def test_behind_anything_else_nothing_is_made_up_for(behind: nn.Module) -> None:
    block, x = Branch(nn.Conv2d(6, 6, 1), behind), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        seen = seen_in(block, x.clone(), block.layer)
    assert seen.addend is None
    torch.testing.assert_close(seen.call.outputs, block.layer(x))


def test_what_is_no_addition_of_a_map_is_left_alone() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + 1.5

    block = Shifted()
    with torch.no_grad():
        assert seen_in(block, torch.randn(2, 3, 4, 4), block.layer).addend is None


@pytest.mark.parametrize("name", ["cifar_resnet20", "test_resnet", "test_mambaout", "test_vit", "test_convnext"])
def test_shortcuts_of_real_networks_are_found(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    size = resolve_model_data_config(model)["input_size"]
    anatomy = Anatomy.on_noise(model, size)
    segments = anatomy.segments_of(model)
    states = states_in_front(segments, anatomy.probe)
    at = segment_of_layers(segments, model)
    found = [
        layer
        for layer, number in at.items()
        if seen_in(segments[number], states[number].clone(), model.get_submodule(layer)).addend is not None
    ]
    assert len(found) >= len(anatomy.blocks) > 0
