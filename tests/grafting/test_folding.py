"""Folding, in every layout: exact, or not at all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.layers import Conv2dSame, StdConv2d
from timm.models.densenet import DenseBlock
from timm.models.resnet import BasicBlock, Bottleneck, downsample_avg, downsample_conv
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.grafting.adapters import Adapter, ConvertingAdapter, LinearAdapter
from netgraft.grafting.foldability import why_not_foldable
from netgraft.grafting.folding import fold, fold_with_report
from netgraft.grafting.pairing import inherit, pair
from netgraft.grafting.scions import assemble, make_scions
from netgraft.splitting.chain import state_of
from netgraft.splitting.layouts import Layout
from netgraft.splitting.split import split
from tests.support.random_models import build, images, randomise, snapshot
from tests.support.through import Through

Array = NDArray[np.float64]


def mix(adapter: nn.Module, x: Array) -> Array:
    """What a 1x1 convolution is: a matrix at each place."""
    assert isinstance(adapter.weight, Tensor)
    return np.einsum("oi,bihw->bohw", adapter.weight.detach().numpy()[:, :, 0, 0], x)


def convolve(conv: nn.Conv2d, x: Array, padding: int) -> Array:
    """Convolve with zero padding, one kernel position after another."""
    weight = conv.weight.detach().numpy()
    stride, dilation, (_, _, rows, columns) = conv.stride[0], conv.dilation[0], weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = ((x.shape[n] - dilation * (k - 1) - 1) // stride + 1 for n, k in ((2, rows), (3, columns)))
    result = np.zeros((x.shape[0], weight.shape[0], height, width))
    for i, j in itertools.product(range(rows), range(columns)):
        top, left = i * dilation, j * dilation
        seen = x[:, :, top : top + stride * (height - 1) + 1 : stride, left : left + stride * (width - 1) + 1 : stride]
        result += np.einsum("oi,bihw->bohw", weight[:, :, i, j], seen)
    return result if conv.bias is None else result + conv.bias.detach().numpy()[:, None, None]


def double(*layers: nn.Module) -> Any:
    """Chain layers with random weights in float64; Any, because modules can't be indexed for a type checker."""
    return nn.Sequential(*(randomise(layer) for layer in layers)).double().eval()


def maps(size: int, channels: int = 5) -> Tensor:
    return images(2, channels, size, size).double()


def check_folded(student: nn.Sequential, x: Tensor, *names: str) -> Any:
    """Fold, compare with the layers one after another, and see that no adapter is left; return what is."""
    before = snapshot(student)
    folding = fold_with_report(student)
    torch.testing.assert_close(folding.student(x), student(x), rtol=0, atol=1e-10)
    assert set(folding.folded) == set(names)
    assert folding.kept == {}
    adapters = [layer for layer in student if isinstance(layer, Adapter)]
    assert len(folding.student) == len(student) - len(adapters)
    assert snapshot(student) == before
    return folding.student


def check_kept(student: nn.Sequential, x: Tensor, reason: str, at: int = 0) -> None:
    """See that the adapter stays a visible layer with its reason, and the function what it was."""
    before = snapshot(student)
    folding = fold_with_report(student)
    torch.testing.assert_close(folding.student(x), student(x), rtol=0, atol=1e-10)
    assert folding.folded == ()
    assert list(folding.kept) == [at]
    assert re.search(reason, folding.kept[at]), folding.kept[at]
    assert isinstance(folding.student[at], nn.Conv2d)
    assert snapshot(student) == before


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Conv2d], int]] = {
    "3x3": (lambda: nn.Conv2d(4, 6, 3, padding=1), 1),
    "3x3 bias-free": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), 1),
    "stride 2": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), 1),
    "dilation 2": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2), 2),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), 0),
    "1x1 stride 2": (lambda: nn.Conv2d(4, 6, 1, stride=2), 0),
    "7x7": (lambda: nn.Conv2d(4, 6, 7, padding=3), 3),
}


@pytest.mark.parametrize("size", [2, 3, 32])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution_after_an_adapter_is_one_convolution_borders_included(kind: str, size: int) -> None:
    make, padding = CONVOLUTIONS[kind]
    student = double(Adapter(5, 4), nn.Sequential(make(), nn.BatchNorm2d(6)))
    x = maps(size)
    adapter, (conv, norm) = student
    expected = convolve(conv, mix(adapter, x.numpy()), padding)
    folded = check_folded(student, x, "0")
    block = folded[0]
    np.testing.assert_allclose(block[0](x).detach().numpy(), expected, rtol=0, atol=1e-10)
    assert (block[0].in_channels, block[0].out_channels) == (5, 6)
    assert repr(block[0]) == repr(conv).replace("Conv2d(4,", "Conv2d(5,")
    assert torch.equal(block[1].running_var, norm.running_var)


def test_several_adapters_in_a_row_are_one_matrix() -> None:
    student = double(Adapter(5, 3), Adapter(3, 7), Adapter(7, 4), nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)))
    x = maps(6)
    expected = x.numpy()
    for adapter in list(student)[:3]:
        expected = mix(adapter, expected)
    expected = convolve(student[3][0], expected, 1)
    folded = check_folded(student, x, "0")
    np.testing.assert_allclose(folded(x).detach().numpy(), expected, rtol=0, atol=1e-10)


def test_square_adapters_are_multiplied_in_their_order() -> None:
    """First ``A``, then ``B``, is the matrix ``BA``; their widths can't tell it from ``AB``."""
    adapters = [Adapter(4, 4).double(), Adapter(4, 4).double()]
    for adapter in adapters:
        nn.init.normal_(adapter.weight)  # not the identity, as at first
    first, second = (adapter.weight.detach().numpy()[:, :, 0, 0] for adapter in adapters)
    assert np.abs(second @ first - first @ second).max() > 0.1
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    expected = np.einsum("ojrc,jk,ki->oirc", conv.weight.detach().numpy(), second, first)
    folded: Any = fold(nn.Sequential(*adapters, nn.Sequential(conv)))
    np.testing.assert_allclose(folded[0][0].weight.detach().numpy(), expected, rtol=0, atol=1e-12)
    # where they stay, too
    kept: Any = fold(nn.Sequential(*adapters, nn.Sequential(nn.MaxPool2d(2), conv)))
    np.testing.assert_allclose(kept[0].weight.detach().numpy()[:, :, 0, 0], second @ first, rtol=0, atol=1e-12)


# --- adapters with a bias


def biased(adapter: nn.Module) -> nn.Module:
    """Give an adapter a bias that is not zero, as training does."""
    with torch.no_grad():
        assert isinstance(adapter.bias, Tensor)
        adapter.bias.normal_()
    return adapter


def affine(adapter: nn.Module, x: Array) -> Array:
    assert isinstance(adapter.bias, Tensor)
    return mix(adapter, x) + adapter.bias.detach().numpy()[:, None, None]


UNPADDED: dict[str, Callable[[], nn.Conv2d]] = {
    "3x3": lambda: nn.Conv2d(4, 6, 3),
    "stride 2": lambda: nn.Conv2d(4, 6, 3, stride=2),
    "dilation 2": lambda: nn.Conv2d(4, 6, 3, dilation=2),
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "1x1, same": lambda: nn.Conv2d(4, 6, 1, padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "TensorFlow's 1x1": lambda: Conv2dSame(4, 6, 1, stride=2, padding=0),
}


@pytest.mark.parametrize("kind", UNPADDED)
def test_a_bias_becomes_a_part_of_an_unpadded_convolutions(kind: str) -> None:
    student = double(Adapter(5, 3, bias=True), Adapter(3, 4, bias=True), nn.Sequential(UNPADDED[kind]()))
    first, second, block = student
    for adapter in (first, second):
        biased(adapter)
    x = maps(7)
    expected = convolve(block[0], affine(second, affine(first, x.numpy())), 0)
    folded = check_folded(student, x, "0")
    np.testing.assert_allclose(folded(x).detach().numpy(), expected, rtol=0, atol=1e-10)
    assert repr(folded[0][0]) == repr(block[0]).replace("(4, 6", "(5, 6")


@pytest.mark.parametrize("which", [(True, False), (False, True)])
def test_adapters_with_and_without_a_bias_follow_each_other(which: tuple[bool, bool]) -> None:
    student = double(Adapter(5, 4, bias=which[0]), Adapter(4, 4, bias=which[1]), nn.Sequential(nn.Conv2d(4, 6, 3)))
    for adapter, has_bias in zip(student, which, strict=False):
        if has_bias:
            biased(adapter)
    x = maps(5)
    expected = x.numpy()
    for adapter, has_bias in zip(student, which, strict=False):
        expected = affine(adapter, expected) if has_bias else mix(adapter, expected)
    folded = check_folded(student, x, "0")
    np.testing.assert_allclose(folded(x).detach().numpy(), convolve(student[2][0], expected, 0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_paddings_that_repeat_the_map_repeat_its_bias(mode: Any) -> None:
    student = double(Adapter(5, 4, bias=True), nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode)))
    biased(student[0])
    check_folded(student, maps(4), "0")


@pytest.mark.parametrize("way", ["mean", "mean, keepdim", "function", "modules"])
def test_a_bias_passes_global_pooling(way: str) -> None:
    student = double(Adapter(5, 4, bias=True), Head(way))
    adapter, head = student
    biased(adapter)
    x = maps(3)
    expected = affine(adapter, x.numpy()).mean((2, 3)) @ head.fc.weight.detach().numpy().T
    folded = check_folded(student, x, "fc")
    np.testing.assert_allclose(folded(x).detach().numpy(), expected + head.fc.bias.detach().numpy(), rtol=0, atol=1e-10)


def test_a_bias_counts_at_each_position_of_a_flattened_map() -> None:
    student = double(Adapter(5, 4, bias=True), Head("modules", features=4 * 2 * 2))
    biased(student[0])
    check_folded(student, maps(2), "fc")


def test_a_bias_where_channels_come_last() -> None:
    student = double(LinearAdapter(5, 4, "tokens", bias=True), nn.Sequential(nn.Dropout(), nn.Linear(4, 6)))
    biased(student[0])
    x = maps_in("tokens")
    folding = fold_with_report(student)
    assert (folding.folded, folding.kept) == (("1",), {})
    torch.testing.assert_close(folding.student(x), student(x), rtol=0, atol=1e-10)


BIAS_KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "zero padding": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)), "0 pads with zeros, to which the adapter's"),
    "bare layer": (lambda: nn.Conv2d(4, 6, 3, padding=(0, 1)), "Conv2d pads with zeros"),
    "padded 1x1": (lambda: nn.Sequential(nn.Conv2d(4, 6, 1, padding=1)), "0 pads with zeros"),
    "same": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding="same")), "0 pads with zeros"),
    "TensorFlow's same": (lambda: nn.Sequential(Conv2dSame(4, 6, 3, padding=0)), "0 pads with zeros"),
    "no bias of its own": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False)), "0 has no bias that could take in"),
    "linear without a bias": (lambda: Through(lambda x: x.mean((2, 3)), nn.Linear(4, 6, bias=False)), "layer has no b"),
    "padding in front": (
        lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 6, 3)),
        "0 doesn't pass the adapter's bias on unchanged",
    ),
    "padded pool": (lambda: nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Conv2d(4, 6, 1)), "0 doesn't pass"),
    "divided pool": (lambda: nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(4, 6, 1)), "0 doesn't pass"),
    "padded pool, function": (
        lambda: Through(lambda x: F.avg_pool2d(x, 2, padding=1), nn.Conv2d(4, 6, 1)),
        "avg_pool2d doesn't pass",
    ),
    "one of two paths": (
        lambda: nn.Sequential(BasicBlock(4, 6, stride=2, downsample=downsample_conv(4, 6, 1, 2))),
        "has no bias that could take in",
    ),
    "max pool": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)), r"0 \(MaxPool2d\) comes first"),
}


@pytest.mark.parametrize("kind", BIAS_KEPT)
def test_a_bias_that_does_not_fold_exactly_stays_with_its_adapter(kind: str) -> None:
    make, reason = BIAS_KEPT[kind]
    student = double(Adapter(5, 3, bias=True), Adapter(3, 4, bias=True), make())
    for adapter in list(student)[:2]:
        biased(adapter)
    x = maps(8)
    inner = affine(student[1], affine(student[0], x.numpy()))
    check_kept(student, x, reason)
    kept: Any = fold_with_report(student).student[0]
    np.testing.assert_allclose(kept(x).detach().numpy(), inner, rtol=0, atol=1e-10)
    # without the biases it would fold, the max pool aside
    assert (why_not_foldable(student[2]) is None) == (kind != "max pool")


def test_a_bias_in_front_of_a_padded_convolution_is_missed_at_the_border_alone() -> None:
    """Why it stays: a fold would be right inside and wrong at the border."""
    student = double(Adapter(5, 4, bias=True), nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)))
    adapter, [conv] = biased(student[0]), student[1]
    x = maps(6)
    assert isinstance(adapter.bias, Tensor)
    conv_weight = conv.weight.detach().numpy()
    folded = convolve(conv, mix(adapter, x.numpy()), 1)
    folded += np.einsum("ojrc,j->o", conv_weight, adapter.bias.detach().numpy())[:, None, None]
    difference = np.abs(folded - student(x).detach().numpy())
    assert difference[:, :, 1:-1, 1:-1].max() < 1e-10
    assert difference[:, :, 0].min() > 0
    assert difference.max() > 0.1


@pytest.mark.parametrize("size", [2, 3, 32])
@pytest.mark.parametrize(
    ("block", "names"),
    [
        (lambda: BasicBlock(4, 6, stride=2, downsample=downsample_conv(4, 6, 1, 2)), ("conv1", "downsample.0")),
        (lambda: BasicBlock(4, 6, stride=2, downsample=downsample_avg(4, 6, 1, 2)), ("conv1", "downsample.1")),
        (lambda: Bottleneck(4, 2, stride=2, downsample=downsample_conv(4, 8, 1, 2)), ("conv1", "downsample.0")),
    ],
    ids=["resnet", "resnet-d", "bottleneck"],
)
def test_both_paths_of_a_residual_block_take_the_adapter(
    block: Callable[[], nn.Module], names: tuple[str, ...], size: int
) -> None:
    check_folded(double(Adapter(5, 4), nn.Sequential(block())), maps(size), *(f"0.{name}" for name in names))


class Head(nn.Module):
    """Pool and classify in one of the ways that models have."""

    def __init__(self, way: str, features: int = 4) -> None:
        super().__init__()
        self.way = way
        self.pool = nn.AdaptiveAvgPool2d(1 if features == 4 else 2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "mean":
            return self.fc(x.mean((2, 3)))
        if self.way == "mean from behind":
            return self.fc(x.mean([-1, -2]))
        if self.way == "mean, keepdim":
            return self.fc(x.mean((2, 3), keepdim=True).flatten(1))
        if self.way == "function":
            return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return self.fc(self.flatten(self.pool(x)))


@pytest.mark.parametrize("way", ["mean", "mean from behind", "mean, keepdim", "function", "modules"])
@pytest.mark.parametrize("size", [1, 5])
def test_linear_layer_behind_global_pooling_takes_the_adapter(way: str, size: int) -> None:
    student = double(Adapter(5, 4), Head(way))
    x = maps(size)
    adapter, head = student
    pooled = mix(adapter, x.numpy()).mean((2, 3))
    expected = pooled @ head.fc.weight.detach().numpy().T + head.fc.bias.detach().numpy()
    folded = check_folded(student, x, "fc")
    np.testing.assert_allclose(folded(x).detach().numpy(), expected, rtol=0, atol=1e-10)
    assert folded[0].fc.in_features == 5


def test_linear_layer_behind_a_flattened_map_takes_the_adapter() -> None:
    student = double(Adapter(5, 4), Head("modules", features=4 * 2 * 2))
    folded = check_folded(student, maps(2), "fc")
    assert tuple(folded[0].fc.weight.shape) == (3, 5 * 2 * 2)


@pytest.mark.parametrize("size", [5, 6, 32])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_same_padding_of_tensorflow(size: int, kernel: int, stride: int) -> None:
    student = double(Adapter(5, 4), nn.Sequential(Conv2dSame(4, 6, kernel, stride=stride, padding=0)))
    check_folded(student, maps(size), "0")


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_other_paddings_work_on_each_channel_too(mode: Any) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode)
    check_folded(double(Adapter(5, 4), nn.Sequential(conv)), maps(4), "0")


def test_bare_layers_take_adapters_too() -> None:
    folded = check_folded(double(Adapter(5, 4), nn.Conv2d(4, 6, 3, padding=1)), maps(4), "Conv2d")
    assert folded[0].in_channels == 5


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Shortcut(nn.Module):
    """A convolution beside which the input goes on in some other way."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.way(x)


class AcrossChannels(nn.Module):
    """The mean over the channels and not over the places, in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mean(1, keepdim=True))


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "max pool": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)), r"0 \(MaxPool2d\) comes first"),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)), r"0 \(BatchNorm2d\) comes first"),
    "dense block": (lambda: DenseBlock(1, 4, 2, 3), r"norm1 \(BatchNormAct2d\) comes first|cat comes first"),
    "activation": (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)), r"0 \(ReLU\) comes first"),
    "identity shortcut": (lambda: nn.Sequential(BasicBlock(4, 4)), "a residual path carries the input on"),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), r"0 \(Conv2d\) comes first"),
    "weight standardisation": (lambda: nn.Sequential(StdConv2d(4, 4, 3)), r"0 \(StdConv2d\) comes first"),
    "weight normalisation": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))),
        r"0 \(ParametrizedConv2d\) comes first",
    ),
    "spectral normalisation": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)).eval()),
        r"0 \(Conv2d\) comes first",
    ),
    "used twice": (Twice, "conv is used more than once"),
    "gate": (lambda: Shortcut(torch.sigmoid), "sigmoid comes first"),
    "mean over channels": (AcrossChannels, "mean comes first"),
    "linear on the last axis": (lambda: nn.Sequential(nn.Linear(8, 2)), r"0 \(Linear\) comes first"),
    "flattened places": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 2)), r"0 \(Flatten\) comes first"),
}


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm`")
def test_what_does_not_fold_exactly_stays(kind: str) -> None:
    make, reason = KEPT[kind]
    torch.manual_seed(0)
    check_kept(double(Adapter(5, 4), make()), maps(8), reason)


def test_an_adapter_at_the_end_stays() -> None:
    check_kept(
        double(nn.Sequential(nn.Conv2d(5, 4, 3)), Adapter(4, 3), Adapter(3, 2)), maps(4), "nothing follows", at=1
    )


def test_adapters_that_stay_are_one_layer_and_others_fold() -> None:
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1))
    student = double(Adapter(5, 3), Adapter(3, 4), pooled, Adapter(5, 4), nn.Sequential(nn.Conv2d(4, 2, 1)))
    folding = fold_with_report(student)
    x = maps(6)
    torch.testing.assert_close(folding.student(x), student(x), rtol=0, atol=1e-10)
    assert len(folding.student) == 3
    assert list(folding.kept) == [0]
    assert folding.folded == ("0",)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(5, 4, 1, stride=2, bias=False),
        nn.Conv2d(5, 4, 1, padding=1, bias=False),
        nn.Conv2d(5, 5, 1, groups=5, bias=False),
        nn.Conv2d(5, 4, 1),
    ],
    ids=["strided", "padded", "depthwise", "with a bias"],
)
def test_other_1x1_convolutions_are_no_adapters(layer: nn.Conv2d) -> None:
    student = double(layer, nn.Sequential(nn.Conv2d(layer.out_channels, 6, 3, padding=1)))
    folding = fold_with_report(student)
    x = maps(6)
    assert torch.equal(folding.student(x), student(x))
    assert len(folding.student) == 2
    assert folding.folded == ()


def test_a_block_that_stands_in_two_places_takes_nothing() -> None:
    shared = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    check_kept(double(shared, Adapter(4, 4), shared), maps(6, channels=4), "0 is used more than once", at=1)


def test_folded_weights_are_laid_out_plainly() -> None:
    student = double(Adapter(5, 4), nn.Sequential(nn.Conv2d(4, 6, 1)))
    folded: Any = fold(student)
    weight = folded[0][0].weight
    assert weight.stride() == torch.empty(6, 5, 1, 1).stride()


def test_modes_gradient_switches_and_other_modules_pass_through() -> None:
    student = double(Adapter(5, 4), nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).train()
    student[1][1].eval()
    student[1][0].weight.requires_grad_(False)
    folded: Any = fold(student)
    assert [folded.training, folded[0].training, folded[0][1].training] == [True, True, False]
    assert not folded[0][0].weight.requires_grad
    model = Twice()
    assert fold(model) is model


def test_folded_half_vgg_is_the_plain_architecture() -> None:
    x = images(2, 3, 32, 32)
    teacher, student = build("cifar_vgg16"), build("cifar_vgg16_half", seed=1)
    pairing = inherit(pair(split(teacher, probe=x), split(student, probe=x)))
    assembled = assemble(pairing, make_scions(pairing)).double().eval()
    folded = check_folded(assembled, x.double(), "features.24", "head.fc")
    plain = build("cifar_vgg16_half").state_dict()
    state = state_of(folded)
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in plain.items()}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def maps_in(layout: str) -> Tensor:
    return images(*{"NHWC": (2, 6, 3, 5), "tokens": (2, 7, 5), "NCHW": (2, 5, 6, 3)}[layout]).double()


def linear(features: int = 4) -> nn.Module:
    return nn.Linear(features, 6)


FOLDED_IN_LAYOUTS: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    "linear": ("NHWC", linear, "Linear"),
    "linear on tokens": ("tokens", lambda: nn.Sequential(nn.Dropout(), nn.Linear(4, 6)), "1"),
    "linear without a bias": ("tokens", lambda: nn.Sequential(nn.Linear(4, 6, bias=False)), "0"),
    "mean of places": ("NHWC", lambda: Through(lambda x: x.mean((1, 2)), linear()), "layer"),
    "mean of places from behind": ("NHWC", lambda: Through(lambda x: x.mean([-3, -2]), linear()), "layer"),
    "mean of places, keepdim": ("NHWC", lambda: Through(lambda x: x.mean((1, 2), keepdim=True), linear()), "layer"),
    "mean of tokens": ("tokens", lambda: Through(lambda x: x.mean(1), linear()), "layer"),
    "mean of tokens, by name": ("tokens", lambda: Through(lambda x: x.mean(dim=(-2,)), linear()), "layer"),
    "padded convolution": (
        "NHWC",
        lambda: Through(lambda x: x.permute(0, 3, 1, 2), nn.Conv2d(4, 6, 3, stride=2, padding=1)),
        "layer",
    ),
    "permuted by function": (
        "NHWC",
        lambda: Through(lambda x: torch.permute(x, (0, 3, 1, 2)), nn.Conv2d(4, 6, 3, padding=1)),
        "layer",
    ),
    "channels brought last": ("NCHW", lambda: Through(lambda x: x.permute(0, 2, 3, 1), linear()), "layer"),
}


def adapter(layout: str, wide: int = 5, narrow: int = 4) -> nn.Module:
    return Adapter(wide, narrow) if layout == "NCHW" else LinearAdapter(wide, narrow, layout)


@pytest.mark.parametrize("kind", FOLDED_IN_LAYOUTS)
def test_what_mixes_channels_takes_the_adapter_in(kind: str) -> None:
    torch.manual_seed(0)
    layout, make, name = FOLDED_IN_LAYOUTS[kind]
    student = double(adapter(layout), make())
    x = maps_in(layout)
    assert why_not_foldable(student[1], layout) is None
    before = snapshot(student)
    folding = fold_with_report(student)
    assert (folding.folded, folding.kept, len(folding.student)) == ((name,), {}, 1)
    torch.testing.assert_close(folding.student(x), student(x), rtol=0, atol=1e-10)
    assert snapshot(student) == before
    taker = folding.student[0].get_submodule("" if name == "Linear" else name)
    assert {nn.Linear: "in_features=5", nn.Conv2d: "Conv2d(5,"}[type(taker)] in repr(taker)


KEPT_IN_LAYOUTS: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    "norm": ("tokens", lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6)), r"0 \(LayerNorm\) comes first"),
    "residual": ("tokens", Residual, "a residual path carries the input on"),
    "class token": ("tokens", lambda: Through(lambda x: x[:, 0], linear()), "getitem comes first"),
    "mean over channels": ("tokens", lambda: Through(lambda x: x.mean(2), linear(7)), "mean comes first"),
    "mean over all but images": (
        "tokens",
        lambda: Through(lambda x: x.mean((1, 2), keepdim=True), linear(1)),
        "mean comes first",
    ),
    "mean of rows": ("NHWC", lambda: Through(lambda x: x.mean(1), linear()), "mean comes first"),
    "mean of columns and channels": ("NHWC", lambda: Through(lambda x: x.mean((2, 3)), linear(6)), "mean comes first"),
    "flattened places": ("NHWC", lambda: Through(lambda x: x.flatten(1), linear(72)), "flatten comes first"),
    "tokens in another order": (
        "tokens",
        lambda: Through(lambda x: x.permute(0, 2, 1), linear(7)),
        "permute comes first",
    ),
    "turned maps": (
        "NHWC",
        lambda: Through(lambda x: x.permute(0, 3, 2, 1), nn.Conv2d(4, 6, 3)),
        "permute comes first",
    ),
    "convolution over rows": ("NHWC", lambda: nn.Sequential(nn.Conv2d(6, 2, 1)), r"0 \(Conv2d\) comes first"),
    "pooling over columns": (
        "NHWC",
        lambda: nn.Sequential(nn.AvgPool2d((1, 4)), nn.Linear(1, 6)),
        r"0 \(AvgPool2d\) comes first",
    ),
}


@pytest.mark.parametrize("kind", KEPT_IN_LAYOUTS)
def test_what_does_not_fold_exactly_stays_a_linear_layer(kind: str) -> None:
    torch.manual_seed(0)
    layout, make, reason = KEPT_IN_LAYOUTS[kind]
    student = double(LinearAdapter(5, 3, layout), LinearAdapter(3, 4, layout), make())
    x = maps_in(layout)
    folding = fold_with_report(student)
    assert folding.folded == ()
    assert list(folding.kept) == [0]
    assert re.search(reason, folding.kept[0]), folding.kept[0]
    kept = folding.student[0]
    assert isinstance(kept, LinearAdapter)
    assert (kept.in_features, kept.out_features, kept.layout, kept.bias) == (5, 4, layout, None)
    # both adapters are one matrix
    assert len(folding.student) == 2
    torch.testing.assert_close(folding.student(x), student(x), rtol=0, atol=1e-10)


def test_converting_adapters_never_fold() -> None:
    torch.manual_seed(0)
    source, target = Layout("NCHW", (6, 3)), Layout("tokens", (3, 3), 1)
    converting = ConvertingAdapter(source, LinearAdapter(5, 4, "tokens"), target, own=target)
    student = double(nn.Conv2d(5, 5, 3, padding=1), converting, nn.Sequential(nn.Linear(4, 6)))
    folding = fold_with_report(student)
    assert folding.kept == {1: "it converts NCHW 6x3 to tokens 3x3+1"}
    assert folding.folded == ()
    x = maps_in("NCHW")
    assert torch.equal(folding.student(x), student(x))
    assert len(folding.student) == 3
