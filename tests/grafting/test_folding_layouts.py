"""Folding where channels come last: exact, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from netgraft.grafting.adapters import Adapter, ConvertingAdapter, LinearAdapter
from netgraft.grafting.foldability import why_not_foldable
from netgraft.grafting.folding import fold_with_report
from netgraft.splitting.layouts import Layout
from tests.support.random_models import images, randomise, snapshot


class Through(nn.Module):
    """A function in front of a layer."""

    def __init__(self, way: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.way = way
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.way(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def double(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(randomise(layer) for layer in layers)).double().eval()


def maps(layout: str) -> Tensor:
    return images(*{"NHWC": (2, 6, 3, 5), "tokens": (2, 7, 5), "NCHW": (2, 5, 6, 3)}[layout]).double()


def linear(features: int = 4) -> nn.Module:
    return nn.Linear(features, 6)


FOLDS: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
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


@pytest.mark.parametrize("kind", FOLDS)
def test_what_mixes_channels_takes_the_adapter_in(kind: str) -> None:
    torch.manual_seed(0)
    layout, make, name = FOLDS[kind]
    student = double(adapter(layout), make())
    x = maps(layout)
    assert why_not_foldable(student[1], layout) is None
    before = snapshot(student)
    folding = fold_with_report(student)
    assert (folding.folded, folding.kept, len(folding.student)) == ((name,), {}, 1)
    torch.testing.assert_close(folding.student(x), student(x), rtol=0, atol=1e-10)
    assert snapshot(student) == before
    taker = folding.student[0].get_submodule("" if name == "Linear" else name)
    assert {nn.Linear: "in_features=5", nn.Conv2d: "Conv2d(5,"}[type(taker)] in repr(taker)


KEPT: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
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


@pytest.mark.parametrize("kind", KEPT)
def test_what_does_not_fold_exactly_stays_a_linear_layer(kind: str) -> None:
    torch.manual_seed(0)
    layout, make, reason = KEPT[kind]
    student = double(LinearAdapter(5, 3, layout), LinearAdapter(3, 4, layout), make())
    x = maps(layout)
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
    x = maps("NCHW")
    assert torch.equal(folding.student(x), student(x))
    assert len(folding.student) == 3
