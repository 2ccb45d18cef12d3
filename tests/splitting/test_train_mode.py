"""Forwards that ask for their mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.splitting.split import split
from tests.support.random_models import images, snapshot

X = images(2, 3, 8, 8)

OTHER = images(2, 3, 8, 8, seed=1)


class Modal(nn.Module):
    """Asks for its mode in the forward: another head, or an auxiliary one in the middle."""

    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head, self.distilled = nn.Linear(4, 5), nn.Linear(4, 5)
        self.auxiliary = auxiliary

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        early = self.distilled(x.mean((2, 3))) if self.auxiliary and self.training else None
        x = F.dropout(self.b(x), 0.3, self.training).mean((2, 3))
        if self.training:
            return self.head(x), early if self.auxiliary else self.distilled(x)
        return self.head(x) if self.auxiliary else (self.head(x) + self.distilled(x)) / 2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_forward_that_asks_for_its_mode(auxiliary: bool, training: bool) -> None:
    model = Modal(auxiliary).train(training)
    before = snapshot(model)
    chain = split(model, probe=X, cuts=["a", "b"])
    assert snapshot(model) == before
    assert len(chain) == 3
    assert torch.equal(chain.eval()(OTHER), model.eval()(OTHER))
    answers = []
    for network in (chain.train(), model.train()):
        torch.manual_seed(1)
        answers.append(network(OTHER))
    if auxiliary:
        assert torch.equal(answers[0], answers[1][0])
    else:
        assert all(torch.equal(*pair) for pair in zip(*answers, strict=True))
    torch.manual_seed(2)
    assert not torch.equal(chain(OTHER)[0], answers[0][0]), "dropout is frozen"


class SkipInTraining(Modal):
    """In train mode alone, what leaves the first layer is needed in the head."""

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        x = self.b(a).mean((2, 3))
        return self.head(x + a.mean((2, 3)) if self.training else x)


def test_a_dependency_of_train_mode_alone_makes_a_cut_illegal() -> None:
    model = SkipInTraining(auxiliary=False).eval()
    chain = split(model, probe=X, cuts=["a", "b"])
    assert chain.names == ("a", "head")
    for training in (False, True):
        assert torch.equal(chain.train(training)(OTHER), model.train(training)(OTHER))
    with pytest.raises(
        RequestError, match="has another forward in train mode, where more than one tensor crosses at b"
    ):
        split(model, probe=X, cuts=["b"])
