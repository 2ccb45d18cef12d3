"""Where a model is cut when nobody says where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft.errors import RequestError
from netgraft.splitting.chain import BlockChain, Cut
from netgraft.splitting.split import split
from tests.support.random_models import build, images, randomise

X = images(2, 3, 8, 8)

OTHER = images(2, 3, 8, 8, seed=1)


def test_a_number_of_blocks_is_met_with_equal_costs() -> None:
    model = build("vit_tiny_patch16_224", num_classes=5)
    x = images(2, 3, 224, 224)
    chain = split(model, probe=x, blocks=6)
    # the twelve blocks of a vision transformer cost the same, embedding and head next to nothing
    assert chain.names == ("blocks.1", "blocks.3", "blocks.5", "blocks.7", "blocks.9", "head")
    with pytest.raises(RequestError, match="a chain has two blocks or more, not 1"):
        split(model, probe=x, blocks=1)
    with pytest.raises(RequestError, match=r"has .* cut points, too few for 99 blocks"):
        split(model, probe=x, blocks=99)
    with pytest.raises(RequestError, match="names of modules to cut behind or a number of blocks, not both"):
        split(model, probe=x, blocks=2, cuts=["blocks.1"])


def test_a_plain_sequence_needs_no_names() -> None:
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 5),
        )
    ).eval()
    chain = split(model, probe=X)
    assert isinstance(chain, BlockChain)
    assert torch.equal(chain(OTHER), model(OTHER))
    assert chain.cuts[:2] == (Cut("2", (4, 3, 3), "NCHW"), Cut("4", (6, 3, 3), "NCHW"))
