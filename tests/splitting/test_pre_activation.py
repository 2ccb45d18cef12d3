"""Blocks cut in front of their last activation compute what they did, and share their layers."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.splitting.pre_activation import split_before_activation
from netgraft.splitting.split import split
from tests.support.random_models import build, images


def entering_last(block: nn.Module, kinds: tuple[type[nn.Module], ...], state: Tensor) -> Tensor:
    """What the last activation that runs takes in."""
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        for layer in block.modules()
        if isinstance(layer, kinds)
    ]
    block(state.clone())
    for handle in handles:
        handle.remove()
    return seen[-1]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cifar_vgg16", (3, 32, 32)),
        ("cifar_resnet8", (3, 32, 32)),
        ("resnet18", (3, 64, 64)),
        ("repvgg_a0", (3, 64, 64)),
    ],
)
def test_both_parts_together_are_the_block(name: str, size: tuple[int, ...], train: bool) -> None:
    chain = split(build(name), probe=images(2, *size))
    state = images(4, *size)
    for block in chain.blocks()[:-1]:
        front, rest = split_before_activation(block)
        assert set(map(id, front.parameters())) == set(map(id, block.parameters()))
        assert not [*rest.parameters()]
        block.train(train)
        buffers = [buffer.clone() for buffer in block.buffers()]
        with torch.no_grad():
            expected, entering = block(state.clone()), entering_last(block, (nn.ReLU,), state)
            for buffer, value in zip(block.buffers(), buffers, strict=True):
                buffer.copy_(value)
            inside = front(state.clone())
            assert torch.equal(inside, entering)
            assert torch.equal(rest(inside.clone()), expected)
        assert float(inside.min()) < 0
        state = expected


class Functional(nn.Module):
    """Ends in a function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.pool = nn.MaxPool2d(2)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.layer(x) * self.scale))


def test_an_activation_may_be_a_function_deep_inside() -> None:
    block = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 3, 1), b=nn.Sequential(Functional(), nn.Dropout2d(0.5)))).eval()
    front, rest = split_before_activation(block)
    x = images(2, 3, 8, 8)
    assert torch.equal(rest(front(x)), block(x))
    assert torch.equal(front(x), block[1][0].layer(block[0](x)) * block[1][0].scale)  # type: ignore[index]
    assert any(parameter is block[1][0].scale for parameter in front.parameters())  # type: ignore[index]


class Twice(nn.Module):
    """Needs what enters the activation behind it too."""

    def __init__(self, by_mode: bool) -> None:
        super().__init__()
        self.layer, self.act, self.by_mode = nn.Conv2d(3, 3, 1), nn.ReLU(), by_mode

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.by_mode:
            return self.act(x + 1 if self.training else x)
        return self.act(x) + x


class Gated(nn.Module):
    """Ends in an activation whose input is needed by another of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(x), x


class Choosing(nn.Module):
    """Goes another way for other images."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) if x.sum() > 0 else x


class Optional(nn.Module):
    """Has an argument that no chain gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        return x if raw else self.act(self.layer(x))


def test_other_arguments_of_a_forward_keep_their_defaults() -> None:
    block = nn.Sequential(Optional())
    front, rest = split_before_activation(block)
    x = images(2, 3, 4, 4)
    assert torch.equal(rest(front(x)), block(x))
    assert float(front(x).detach().min()) < 0


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1)), "a block doesn't end in an activation"),
        (nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1)), "doesn't end in an activation"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2)), "doesn't end in an activation"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.PReLU()), "doesn't end in an activation"),
        (Twice(by_mode=False), "Twice doesn't end in an activation"),
        (Gated(), "Gated doesn't end in an activation"),
        (nn.Sequential(Twice(by_mode=True)), "Twice has another forward in train mode"),
        (build("mobilenetv2_035").bn1, "BatchNormAct2d has another forward in train mode"),
        (build("digits_vgg7_bn").head, "ClassifierHead doesn't end in an activation"),
        (nn.Sequential(Choosing()), r"Choosing can't be traced \(TraceError: "),
    ],
)
def test_what_has_no_last_activation_is_refused_and_left_as_it_is(block: nn.Module, said: str) -> None:
    modes = [module.training for module in block.modules()]
    with pytest.raises(RequestError, match=said):
        split_before_activation(block)
    assert [module.training for module in block.modules()] == modes
