"""A split model is its chain, or is refused: real families, odd forwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.splitting.chain import state_of
from netgraft.splitting.split import split
from tests.support.model_families import FAMILIES, family
from tests.support.random_models import build, images, snapshot

X = images(2, 3, 8, 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_chain_is_the_model(name: str) -> None:
    model, x = family(name)
    chain = split(model, probe=x)
    assert len(chain.cuts) >= FAMILIES[name][1]
    assert len(chain) == len(chain.cuts) + 1
    assert torch.equal(chain(x), model(x))
    assert {id(p) for p in chain.parameters()} == {id(p) for p in model.parameters()}
    assert {id(b) for b in chain.buffers()} == {id(b) for b in model.buffers()}
    state = state_of(chain)
    assert state.keys() == model.state_dict().keys()
    assert all(state[key].data_ptr() == value.data_ptr() for key, value in model.state_dict().items())

    reference = copy.deepcopy(model)
    for network in (chain, reference):
        torch.manual_seed(1)
        network.train()
        network(x).square().mean().backward()
    for weight, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert weight.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(weight.grad, expected.grad, rtol=0, atol=0)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), reference.buffers(), strict=True))
    torch.manual_seed(2)
    logits = chain(x)
    torch.manual_seed(2)
    assert torch.equal(logits, reference(x))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, features: bool = False) -> Tensor:
        x = self.conv(x) * scale
        if mask is not None:
            x = x * mask
        return x if features else self.fc(x.mean((2, 3)))


def test_optional_arguments_keep_their_defaults() -> None:
    model = Optional().eval()
    chain = split(model, probe=X, cuts=["conv"])
    assert torch.equal(chain(X), model(X))
    assert not torch.equal(model(X), model(X, scale=1.0))


class Needy(Optional):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(self.conv(x * mask).mean((2, 3)))


class Two(Optional):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.conv(x).mean((2, 3))
        return self.fc(x), x


class Branching(Optional):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.conv(x)
        return self.fc((x if x.sum() > 0 else -x).mean((2, 3)))


class Noisy(Optional):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.conv(x)
        return self.fc((x + torch.rand_like(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Needy(), "Needy needs 'mask' beside the images"),
        (Two(), "Two returns tuple, not one tensor of logits"),
        (Branching(), "Branching can't be cut at conv: tracing its forward failed"),
        (Noisy(), "Noisy can't be cut at conv: the chain's logits differ from the model's"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_that_are_no_chain_are_refused(model: nn.Module, message: str) -> None:
    before = snapshot(model)
    with pytest.raises(RequestError, match=message):
        split(model, probe=X, cuts=["conv"])
    assert snapshot(model) == before


def test_unknown_and_missing_cuts_are_refused() -> None:
    with pytest.raises(RequestError, match="Optional has no module 'layer9' to cut behind"):
        split(Optional(), probe=X, cuts=["conv", "layer9"])


def test_images_that_a_model_can_not_take_are_refused_in_a_sentence() -> None:
    with pytest.raises(
        RequestError, match=r"VisionTransformer can't take images of 3x32x32 .*choose another model or image size"
    ):
        split(build("vit_tiny_patch16_224", 0), probe=images(1, 3, 32, 32, seed=0))
