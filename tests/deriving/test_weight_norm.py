"""The order in which small filters go, against sums that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netgraft.deriving.following import follow_channels
from netgraft.deriving.places import find_places
from netgraft.deriving.weight_norm import weight_norm_order
from tests.support.derivable import images, network


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_channels_go_by_the_filters_that_write_them(kind: str) -> None:
    model = network(kind)
    found = follow_channels(model, images()[:1])
    tried = 0
    for place in find_places(found):
        order = weight_norm_order(place, model, found.products).tolist()
        assert sorted(order) == list(range(place.width))
        sizes = np.zeros(place.width)
        for name, module in model.named_modules():
            # in these networks a layer writes a place where it has as many outputs, and its outputs are those channels
            if name in place.layers and isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                axes = found.tensors[f"{name}.weight"]
                if place.atom in axes[0].atoms():
                    filters = module.weight.detach().double().numpy()
                    sizes += [np.abs(filters[channel]).sum() for channel in range(place.width)]
        assert np.all(np.diff(sizes[order]) >= -1e-9)
        tried += 1
    assert tried > 1


def test_a_filter_of_zeros_goes_first_and_a_large_one_last() -> None:
    model = network("plain")
    found = follow_channels(model, images()[:1])
    place = find_places(found)[0]
    weight = model.get_parameter(f"{place.name}.weight")
    with torch.no_grad():
        weight[3] = 0
        weight[5] *= 100
    order = weight_norm_order(place, model, found.products).tolist()
    assert (order[0], order[-1]) == (3, 5)
