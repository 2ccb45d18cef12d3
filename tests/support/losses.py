"""What tests of several losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from netgraft.losses.neuron_selectivity import NeuronSelectivity

KERNELS = {
    "linear": NeuronSelectivity("linear"),
    "degree 1": NeuronSelectivity(degree=1, constant=0.3),
    "degree 2": NeuronSelectivity(),
    "degree 2, constant": NeuronSelectivity(constant=0.7),
    "degree 3, constant": NeuronSelectivity(degree=3, constant=0.5),
    "gaussian": NeuronSelectivity("gaussian", degree=1),  # which only a polynomial has
}


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers, drawn in float64 whatever the type that is asked for."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
