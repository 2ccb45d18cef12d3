"""What tracing looks into, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.splitting.split import split
from tests.support.random_models import build, images

X = images(2, 3, 8, 8)


def test_a_cache_of_the_mode_is_dropped_as_the_model_drops_it() -> None:
    """LeViT keeps attention biases for eval mode; training after a split must not leave them behind."""
    model = build("levit_128s", num_classes=5).train()
    x = images(2, 3, 224, 224)
    chain = split(model, probe=x)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention_biases" in name:
                parameter.add_(torch.linspace(0, 2, parameter.numel()).view_as(parameter))
    fresh = build("levit_128s", num_classes=5)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), fresh(x))
    assert torch.equal(chain.eval()(x), fresh(x))


def test_a_model_without_anything_to_cut_is_refused() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if x.sum() > 0 else -self.net(x)

    with pytest.raises(RequestError, match="Whole can't be cut: tracing its forward failed in eval mode"):
        split(Whole(), probe=X)
