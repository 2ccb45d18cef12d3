"""What a preview counts of a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft.experiments.preview import _values_of


@pytest.mark.parametrize("inplace", [True, False])
def test_what_a_layer_computes_is_counted_once_wherever_it_lies(inplace: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=inplace),
        nn.Identity(),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).train()
    maps = 8 * 4 * 4
    activation = [] if inplace else [maps]
    assert sorted(_values_of(model, torch.zeros(1, 3, 4, 4))) == sorted([maps, maps, *activation, 5])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
