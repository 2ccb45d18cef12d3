"""Blocks do what the model's forward does between two cuts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.splitting.split import split
from tests.support.random_models import images

X = images(2, 3, 8, 8)


class Dropping(nn.Module):
    def __init__(self, drop: Callable[..., Tensor], conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.fc = nn.Linear(8, 4)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.conv(x), p=0.4, training=self.training)
        return self.fc(self.drop(x, 0.2, self.training).flatten(2).mean(2))


@pytest.mark.parametrize("drop", [F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout])
@pytest.mark.parametrize("training", [False, True])
def test_functional_dropout_follows_the_mode(drop: Callable[..., Tensor], training: bool) -> None:
    lines = drop is F.dropout1d
    x = X[:, :, 0] if lines else X
    model = Dropping(drop, nn.Conv1d(3, 8, 3) if lines else nn.Conv2d(3, 8, 3)).train(training)
    chain = split(model, probe=x, cuts=["conv"])
    answers = []
    for mode in (None, True, False):
        for network in (chain, model):
            if mode is not None:
                network.train(mode)
            torch.manual_seed(3)
            answers.append(network(x))
    assert all(torch.equal(answers[n], answers[n + 1]) for n in (0, 2, 4))
    assert not torch.equal(answers[2], answers[4])


class InPlace(nn.Module):
    """Works in place on the images, right behind a cut with a module, and with a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.b = nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.act(self.a(x.mul_(2))))
        F.relu(x, inplace=True)
        return self.fc(x.mean((2, 3)))


def test_work_in_place_at_a_cut() -> None:
    model = InPlace().eval()
    probe = X.clone()
    chain = split(model, probe=probe, cuts=["a", "b"])
    assert torch.equal(probe, X)
    assert len(chain) == 3
    assert torch.equal(chain(X.clone()), model(X.clone()))
    first = chain[0](X.clone())
    assert first.min() == 0, "the activation belongs to the block in front of the cut"


class Constants(nn.Module):
    """A constant made of a parameter is needed in both blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.gain = nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain.exp()
        x = self.conv(x) * gain[:, None, None]
        return self.fc(x.mean((2, 3)) * gain)


def test_constants_are_recomputed_where_they_are_needed() -> None:
    model = Constants().eval()
    chain = split(model, probe=X, cuts=["conv"])
    assert torch.equal(chain(X), model(X))
    gradients = []
    for network in (model, chain):
        model.zero_grad()
        network(X).square().sum().backward()
        assert model.gain.grad is not None
        gradients.append(model.gain.grad.clone())
    torch.testing.assert_close(*gradients)
