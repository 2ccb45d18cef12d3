"""Networks side by side, for methods in which students teach one another."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Peers(nn.Module):
    """Several networks on the same input: (B, ...) -> logits (B, peers, K).

    Args:
        networks: Each from (B, ...) to logits (B, K).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, peers, K) of every network, in their order."""
        # a network may work in place on its input
        return torch.stack([network(inputs.clone()) for network in self.networks], dim=1)


class AveragingEnsemble(nn.Module):
    """Several classifiers' mean probabilities, as logits: (B, ...) -> (B, K).

    Args:
        networks: Each from (B, ...) to logits (B, K).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.peers = Peers(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logarithms (B, K) of the mean probabilities, averaged in float32."""
        logits = self.peers(inputs).float()
        return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


class LastLogits(nn.Module):
    """The logits of the last of several networks: (B, networks, K) -> (B, K)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Select them."""
        return logits[:, -1]


def reborn(blocks: nn.Module) -> nn.Module:
    """Copy blocks and start every layer of the copy at random, by the layer's own initialisation.

    Args:
        blocks: Stay as they are.
    """
    fresh = copy.deepcopy(blocks)
    for layer in fresh.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    return fresh
