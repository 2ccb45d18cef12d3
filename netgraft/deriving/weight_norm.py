"""Which channels go first by the size of the weights that make them: what derived students are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netgraft.deriving.following import Product
from netgraft.deriving.places import Place


def weight_norm_order(place: Place, model: nn.Module, products: Sequence[Product]) -> Tensor:
    """Return the channels of a place, those of the smallest filters first.

    A channel's size is the sum of the absolute weights of its filter, over all layers that write it; of a head of
    attention that of all its channels.

    Args:
        place: Whose channels.
        model: Has the layers.
        products: All of its forward; those that write the place count, each layer once.

    Returns:
        (width of the place,) indices.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.
    """
    writers = {each.layer: each.outputs for each in products if each.layer and place.atom in each.outputs.atoms()}
    total = torch.zeros(place.width, dtype=torch.float64)
    for name, outputs in writers.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        sizes = weight.detach().cpu().double().flatten(1).abs().sum(1)
        total += sizes[outputs.positions_of(place.atom)].sum(1)
    return total.argsort(stable=True)
