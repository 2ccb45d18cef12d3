"""Copies of frozen blocks compute the same with fewer layers, or as matrix products."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import Tensor, nn

from netgraft import split
from netgraft.modules import shares_parameters, state_digest
from netgraft.training.fusion import DenseConvolution, fused_copies, fused_copy, with_dense_convolutions
from tests.support.random_models import images, randomise, snapshot

NORMS = nn.BatchNorm2d


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, NORMS) for layer in module.modules())


class Residual(nn.Module):
    """conv-norm-relu-conv-norm with a skip connection through a conv and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y += self.bn3(self.conv3(x))
        return self.act(y)


class TwoReaders(nn.Module):
    """A convolution whose output is read by a norm and by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class TwiceNormed(nn.Module):
    """One norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bn = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.second(self.bn(self.first(x))))


class TwiceConvolved(nn.Module):
    """One convolution in front of a norm and once more behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.bn(self.conv(x)))


class WeightElsewhere(nn.Module):
    """A convolution whose weight is used beside it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.conv.weight.square().sum()


class Decides(nn.Module):
    """Goes a way that depends on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y if x.mean() > 0 else -y


class OnlyFloat32(nn.Module):
    """Can't run in float64, so that nothing can be proven."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.float()))


def conv_norm(convolution: nn.Module, norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(convolution, norm or nn.BatchNorm2d(6), nn.ReLU())


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "without bias": lambda: conv_norm(nn.Conv2d(6, 6, 3, bias=False)),
    "with bias": lambda: conv_norm(nn.Conv2d(6, 6, 3)),
    "strided, dilated": lambda: conv_norm(nn.Conv2d(6, 6, 3, stride=2, dilation=2, padding=2)),
    "reflected border": lambda: conv_norm(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")),
    "grouped": lambda: conv_norm(nn.Conv2d(6, 6, 3, groups=3)),
    "depthwise": lambda: conv_norm(nn.Conv2d(6, 6, 3, groups=6, bias=False)),
    "without affine": lambda: conv_norm(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, affine=False)),
    "large eps": lambda: conv_norm(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, eps=0.5)),
    "chain": lambda: nn.Sequential(conv_norm(nn.Conv2d(6, 6, 3)), conv_norm(nn.Conv2d(6, 6, 1)), nn.Dropout(0.5)),
    "same padding": lambda: conv_norm(Conv2dSame(6, 6, 3, stride=2)),
    "residual": Residual,
    "norm with activation": lambda: conv_norm(nn.Conv2d(6, 6, 3), BatchNormAct2d(6, act_layer=nn.SiLU)),
    "norm with drop": lambda: conv_norm(nn.Conv2d(6, 6, 3), BatchNormAct2d(6, drop_layer=nn.Dropout)),
    "norm without activation": lambda: conv_norm(nn.Conv2d(6, 6, 3), BatchNormAct2d(6, apply_act=False)),
}

LEFT: dict[str, Callable[[], nn.Module]] = {
    "two readers": TwoReaders,
    "norm called twice": TwiceNormed,
    "convolution called twice": TwiceConvolved,
    "weight used elsewhere": WeightElsewhere,
    "standardised weights": lambda: conv_norm(StdConv2d(6, 6, 3)),
    "no statistics": lambda: conv_norm(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
    "norm in front": lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)),
    "norm behind an activation": lambda: nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
    "decides by pixels": Decides,
}


def random_block(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomise(make()).eval()


@torch.no_grad()
def assert_equal(block: nn.Module, copied: nn.Module, example: Tensor, tolerance: float) -> None:
    expected = block(example.clone())
    difference = (copied(example.clone()) - expected).abs().max()
    assert expected.abs().max() > 0.1
    assert float(difference) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*product([*FOLDED, *LEFT], [torch.float32, torch.float64]), ("float32 alone", torch.float32)],
)
def test_copies_compute_the_same(name: str, dtype: torch.dtype) -> None:
    block = random_block({**FOLDED, **LEFT, "float32 alone": OnlyFloat32}[name]).to(dtype)
    # other pixels than those of the proof, and another size
    example, proof = images(5, 6, 11, 9, seed=1).to(dtype), images(2, 6, 8, 8).to(dtype)
    before = snapshot(block)
    copied = fused_copy(block, proof)
    assert_equal(block, copied, example, 1e-9 if dtype == torch.float64 else 1e-5)
    assert norms(copied) == (0 if name in FOLDED else norms(block) > 0)
    assert {p.dtype for p in copied.parameters()} == {dtype}
    assert not any(p.requires_grad for p in copied.parameters())
    assert not any(module.training for module in copied.modules())
    assert not shares_parameters(block, copied)
    assert snapshot(block) == before


def test_norms_that_fold_are_gone_beside_those_that_do_not() -> None:
    block = random_block(lambda: nn.Sequential(TwoReaders(), Residual()))
    copied = fused_copy(block, images(2, 6, 8, 8))
    assert (norms(block), norms(copied)) == (4, 1)
    assert_equal(block, copied, images(3, 6, 8, 8), 1e-5)


def test_blocks_in_train_mode_are_copied_in_eval_mode() -> None:
    block = random_block(Residual).train()
    digest = state_digest(block)
    copied = fused_copy(block, images(2, 6, 8, 8))
    assert not copied.training
    assert block.training
    assert state_digest(block) == digest
    assert_equal(block.eval(), copied, images(3, 6, 8, 8), 1e-5)


def test_blocks_without_weights_are_copied() -> None:
    example = images(2, 6, 8, 8)
    for block in (nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)), nn.Flatten(), nn.Identity()):
        assert torch.equal(fused_copy(block.eval(), example)(example.clone()), block(example.clone()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "regnetx_002", "tf_efficientnet_lite0"])
def test_no_norm_is_left_in_the_blocks_of_real_models(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=7)).eval()
    chain = split(model, probe=images(2, 3, 64, 64)).eval()
    copies = fused_copies([chain], nn.Identity(), images(2, 3, 64, 64), torch.float32)
    assert list(copies) == list(chain)
    assert norms(chain) > 10
    state = images(3, 3, 64, 64, seed=2)
    for block in chain:
        assert norms(copies[block]) == 0
        assert_equal(block, copies[block], state, 1e-5)
        with torch.no_grad():
            state = block(state.clone())


# --- which blocks are copied


def small_chain() -> nn.Sequential:
    blocks = [conv_norm(nn.Conv2d(3, 6, 3)), Residual(), nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5))]
    return random_block(lambda: nn.Sequential(*blocks))  # type: ignore[return-value]


def test_what_shares_anything_with_what_trains_is_left_out() -> None:
    first, second = small_chain(), small_chain()
    shared = nn.Conv2d(6, 8, 3, padding=1)
    shared.weight = second[1].conv2.weight  # type: ignore[union-attr,assignment]
    trained = nn.ModuleList([first[0][1], shared])  # type: ignore[index]
    copies = fused_copies([first, second, nn.Sequential(*first)], trained, images(2, 3, 8, 8), torch.float32)
    assert set(copies) == {first[1], first[2], second[0], second[2]}
    assert not shares_parameters(nn.ModuleList(list(copies.values())), nn.ModuleList([first, second, trained]))


def test_copies_behind_a_trained_block_are_proven_on_what_it_answers() -> None:
    chain = small_chain()
    copies = fused_copies([chain], chain[1], images(2, 3, 8, 8), torch.float32)
    with torch.no_grad():
        middle = chain[1](chain[0](images(4, 3, 8, 8, seed=3)))
    assert_equal(chain[2], copies[chain[2]], middle, 1e-5)
    assert norms(copies[chain[0]]) == 0


def test_only_weights_of_convolutions_and_linear_layers_are_lowered() -> None:
    left = nn.Sequential(StdConv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.BatchNorm2d(6))
    chain = random_block(lambda: nn.Sequential(left, small_chain()[1], small_chain()[2]))
    assert isinstance(chain, nn.Sequential)
    before = snapshot(chain)
    copies = fused_copies([chain], nn.Identity(), images(2, 6, 6, 6), torch.bfloat16)
    assert snapshot(chain) == before
    for copied in copies.values():
        for module in copied.modules():
            lowered = type(module) in {nn.Conv2d, nn.Linear}
            for parameter in module.parameters(recurse=False):
                assert parameter.dtype == (torch.bfloat16 if lowered else torch.float32)
            assert all(b.dtype != torch.bfloat16 for b in module.buffers(recurse=False))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, got = images(2, 6, 6, 6, seed=4), images(2, 6, 6, 6, seed=4)
        for block in chain:
            expected, got = block(expected), copies[block](got)
    # bfloat16 has eight significant bits, and a handful of layers follow one another
    assert (got - expected).abs().max() < 2**-5 * expected.abs().max()


# --- convolutions on tiny maps


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 3), (4, 1)])
@pytest.mark.parametrize(
    "layer",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 5), "padding": (1, 2)},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 5, "padding": 4, "stride": (1, 2)},
    ],
)
def test_values_and_gradients_are_the_convolutions(layer: dict[str, object], size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, bias=bias, **layer).double()  # type: ignore[arg-type]
    maps = torch.randn(5, 3, *size, dtype=torch.float64).requires_grad_()
    twin = maps.detach().clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    expected, got = convolution(maps), DenseConvolution(convolution, size)(twin)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    slope = torch.randn_like(expected)
    expected.backward(slope)
    got.backward(slope)
    torch.testing.assert_close(twin.grad, maps.grad, atol=1e-12, rtol=1e-12)


def test_another_size_is_refused() -> None:
    dense = DenseConvolution(nn.Conv2d(3, 4, 3, padding=1), (2, 2))
    with pytest.raises(ValueError, match=r"expected maps of \(2, 2\), got \(3, 2\)"):
        dense(torch.zeros(1, 3, 3, 2))


class Twice(nn.Module):
    """Calls one layer on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.max_pool2d(self.layer(maps), 2))


def test_only_plain_convolutions_on_maps_smaller_than_their_kernel_are_replaced() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 4x4: no
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1),  # 2x2, but one position a kernel: no
        nn.Conv2d(4, 4, 3, padding=1, groups=2),  # no
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),  # no
        nn.Conv2d(4, 4, 3, padding="same"),  # no
        nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()),  # yes
        Twice(),  # no
        nn.Conv2d(3, 5, 3, padding=1),  # 1x1: yes
    ).double()
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plain = copy.deepcopy(network)
    dense = with_dense_convolutions(network, images)
    replaced = {name for name, module in dense.named_modules() if isinstance(module, DenseConvolution)}
    assert replaced == {"6.0", "8"}
    torch.testing.assert_close(dense(images), plain(images), atol=1e-12, rtol=1e-12)
