"""Where adapters fold in real models, by the articles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.grafting.adapters import Adapter
from netgraft.grafting.foldability import mixes_channels, why_not_foldable
from netgraft.grafting.folding import fold_with_report
from netgraft.splitting.split import split
from tests.support.random_models import build, images
from tests.support.through import Through


@pytest.mark.parametrize(
    ("name", "foldable"),
    [
        # by the articles: what stands first behind each stage, the head last
        ("resnet18", [False, True, True, True, True]),
        ("resnet18d", [False, True, True, True, True]),
        ("resnet50", [True, True, True, True, True]),
        ("mobilenetv2_100", [True, True, True, True, True]),
        ("densenet121", [False, False, False, False, True]),
        ("cifar_vgg16_bn", [True, True, True, True, True]),
        ("regnetx_002", [True, True, True, True, True]),
    ],
)
def test_where_adapters_fold_in_real_models(name: str, foldable: list[bool]) -> None:
    size = 32
    x = images(1, 3, size, size)
    chain = split(build(name, num_classes=3), probe=x)
    found = {cut.name: why_not_foldable(block) for cut, block in zip(chain.cuts, chain.blocks()[1:], strict=True)}
    assert [reason is None for reason in found.values()] == foldable, found
    for cut, block in zip(chain.cuts, chain.blocks()[1:], strict=True):
        if found[cut.name] is None:
            student = nn.Sequential(Adapter(3, cut.channels), block).double().eval()
            state = images(1, 3, *cut.size).double()
            torch.testing.assert_close(fold_with_report(student).student(state), student(state), rtol=1e-10, atol=1e-10)


def conv() -> nn.Module:
    return nn.Conv2d(4, 6, 1)


def linear(features: int = 4) -> nn.Module:
    return nn.Linear(features, 6)


# name -> the way, the layer behind it, and whether a value that is the same everywhere passes through as it is
PASSING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], nn.Module], bool]] = {
    "pool, kernel alone": (lambda x: F.avg_pool2d(x, 2), conv, True),
    "pool, kernel and stride": (lambda x: F.avg_pool2d(x, 2, 1), conv, True),
    "pool, both by name": (lambda x: F.avg_pool2d(x, kernel_size=2, stride=1), conv, True),
    "pool, padding": (lambda x: F.avg_pool2d(x, 2, 2, 1), conv, False),
    "pool, padding by name": (lambda x: F.avg_pool2d(x, 2, stride=2, padding=1), conv, False),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, 2), conv, True),
    "flatten": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), linear, True),
    "flatten, both ends": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1, -1), linear, True),
    "flatten, by name": (lambda x: x.flatten(start_dim=1, end_dim=-1), lambda: linear(64), True),
    "flatten, function": (lambda x: torch.flatten(x, 1), lambda: linear(64), True),
    "flatten, function by name": (lambda x: torch.flatten(x, start_dim=1), lambda: linear(64), True),
    "mean": (lambda x: x.mean((2, 3)), linear, True),
    "mean, from the end": (lambda x: x.mean([-1, -2]), linear, True),
    "mean, by name": (lambda x: x.mean(dim=(2, 3)), linear, True),
    "mean, kept": (lambda x: x.mean((2, 3), True), conv, True),
    "mean, kept by name": (lambda x: x.mean((2, 3), keepdim=True), conv, True),
    "mean, not kept": (lambda x: x.mean((2, 3), keepdim=False), linear, True),
    "permuted": (lambda x: x.permute(0, 2, 3, 1), linear, True),
    "permuted, one argument": (lambda x: x.permute((0, 2, 3, 1)), linear, True),
    "permuted, function": (lambda x: torch.permute(x, (0, 2, 3, 1)), linear, True),
    "permuted, by name": (lambda x: torch.permute(x, dims=(0, 2, 3, 1)), linear, True),
    "contiguous": (lambda x: x.contiguous(), conv, True),
    "there and back": (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), conv, True),
    "mean behind a permutation": (lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), linear, True),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", PASSING)
def test_what_a_mix_of_channels_passes_through(kind: str, bias: bool) -> None:
    """Folded it gives the same; where a bias can't pass, it is refused, and would have been wrong."""
    way, layer, passes_bias = PASSING[kind]
    torch.manual_seed(0)
    adapter = Adapter(3, 4, bias=bias)
    if adapter.bias is not None:
        nn.init.normal_(adapter.bias)
    student = nn.Sequential(adapter, Through(way, layer())).double().eval()
    folding = fold_with_report(student)
    x = images(2, 3, 4, 4).double()
    torch.testing.assert_close(folding.student(x), student(x), rtol=1e-10, atol=1e-10)
    if passes_bias or not bias:
        assert folding.folded == ("layer",)
        assert len(folding.student) == 1
    else:
        assert folding.kept == {0: "avg_pool2d doesn't pass the adapter's bias on unchanged"}
        maps = torch.ones(1, 4, 4, 4)
        assert not torch.equal(way(maps), torch.ones_like(way(maps)))


@pytest.mark.parametrize(
    ("pool", "passes"),
    [
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d(2, padding=(0, 0)), True),
        (nn.AvgPool2d(2, padding=(0, 1)), False),
        (nn.AvgPool2d(2, padding=(1, 0)), False),
        (nn.AvgPool2d(2, divisor_override=3), False),
        (nn.ZeroPad2d(1), False),
    ],
    ids=str,
)
def test_pools_that_pass_a_constant_on_take_a_bias(pool: nn.Module, passes: bool) -> None:
    ones = torch.ones(1, 4, 4, 4)
    assert bool((pool(ones) == 1).all()) == passes
    reason = why_not_foldable(nn.Sequential(pool, nn.Conv2d(4, 6, 1)), bias=True)
    assert reason == (None if passes else "0 doesn't pass the adapter's bias on unchanged")
    assert why_not_foldable(nn.Sequential(pool, nn.Conv2d(4, 6, 1))) is None


STOPPING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], nn.Module], str]] = {
    "mean over one side": (lambda x: x.mean(2), lambda: linear(4), "mean comes first"),
    "mean over one side, in a list": (lambda x: x.mean((2,)), lambda: linear(4), "mean comes first"),
    "mean over everything": (lambda x: x.mean().view(1, 1).expand(1, 4), linear, "mean comes first"),
    "mean over channels and one side": (lambda x: x.mean((1, 2)), linear, "mean comes first"),
    "flattened with the batch": (lambda x: x.flatten(), lambda: linear(128), "flatten comes first"),
    "flattened in part": (lambda x: x.flatten(1, 2), lambda: linear(4), "flatten comes first"),
    "flattened in part, by name": (
        lambda x: x.flatten(start_dim=1, end_dim=2),
        lambda: linear(4),
        "flatten comes first",
    ),
    "flattened sides": (lambda x: x.flatten(2), lambda: linear(16), "flatten comes first"),
    "permuted otherwise": (lambda x: x.permute(0, 3, 1, 2), linear, "permute comes first"),
    "flattened with channels last": (
        lambda x: x.permute(0, 2, 3, 1).flatten(1),
        lambda: linear(64),
        "flatten comes first",
    ),
    "scaled": (lambda x: x * 2, conv, "mul comes first"),
    "residual": (lambda x: x + x, conv, "a residual path carries the input on"),
    "residual, method": (lambda x: x.add(x), conv, "a residual path carries the input on"),
    "residual, in place": (lambda x: x.add_(x), conv, "a residual path carries the input on"),
    "residual, function": (lambda x: torch.add(x, x), conv, "a residual path carries the input on"),
}


@pytest.mark.parametrize("kind", STOPPING)
def test_what_stops_an_adapter_is_named(kind: str) -> None:
    way, layer, reason = STOPPING[kind]
    assert why_not_foldable(Through(way, layer())) == reason


def test_what_takes_nothing_in_or_can_not_be_read_is_said() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(1)

    assert why_not_foldable(Branching()) == "Branching can't be traced"
    assert why_not_foldable(Constant()) == "nothing takes the input"


def test_layers_take_adapters_in_their_own_layout() -> None:
    assert mixes_channels(nn.Conv2d(4, 6, 3), "NCHW")
    assert not mixes_channels(nn.Conv2d(4, 6, 3), "NHWC")
    assert not mixes_channels(nn.Conv2d(4, 6, 3, groups=2), "NCHW")
    assert not mixes_channels(nn.Linear(4, 6), "NCHW")
    assert mixes_channels(nn.Linear(4, 6), "NHWC")
    assert mixes_channels(nn.Linear(4, 6), "tokens")
    assert not mixes_channels(nn.BatchNorm2d(4), "NCHW")
