"""Models with random weights that hide no mistake."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

import netgraft.zoo  # noqa: F401  (registers the CIFAR-size models)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give scales, biases and statistics that start as constants values of their own."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    for tensor in tensors:
        if (tensor == tensor.flatten()[0]).all():
            tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))
    return model


def build(name: str, seed: int = 0, **options: Any) -> nn.Module:
    """Return an untrained timm model in eval mode."""
    torch.manual_seed(seed)
    return randomise(timm.create_model(name, **options), seed).eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def snapshot(model: nn.Module) -> list[bytes]:
    """Every value, mode and gradient switch of a model."""
    values = [tensor.detach().numpy().tobytes() for tensor in model.state_dict().values()]
    switches = [bool(p.requires_grad) for p in model.parameters()] + [m.training for m in model.modules()]
    return [*values, bytes(switches)]
