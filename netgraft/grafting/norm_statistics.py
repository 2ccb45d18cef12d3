"""Batch norms that hold no statistics: measure them, and let the model compute what it computed before.

Weights whose norms were folded into the convolutions in front of them come with norms that are identities: a mean of 0
and a variance of 1. They are right in eval mode, but in train mode such a norm goes by its batch's statistics, and the
network is another one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from netgraft.modules import eval_mode

_Norm = nn.modules.batchnorm._BatchNorm


def norms_without_statistics(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch norms whose statistics are those of a new one: all means 0, all variances 1.

    A variance may be off by the norm's ``eps``, which who folds it may have taken off, and a rounding error.

    Args:
        model: Any; norms without a weight of their own, or without statistics, are left out.
    """
    found = []
    for module in model.modules():
        if not isinstance(module, _Norm) or module.running_mean is None or module.running_var is None:
            continue
        off = (module.running_var - 1).abs().max()
        if module.affine and not module.running_mean.any() and off <= module.eps + 1e-6:
            found.append(module)
    return found


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Give the norms without statistics those of what they take in, and weights with which they compute the same.

    With a new mean ``m`` and variance ``v`` a norm's weight is multiplied by ``sqrt((v + eps) / (v0 + eps))`` and its
    bias gets what the old one added: in eval mode the model's function doesn't change, and in train mode it is about
    the same one.

    Args:
        model: Changed in place; its modes are left as they are.
        batches: Images (B, C, H, W) that the model takes.

    Returns:
        How many norms were measured.
    """
    norms = norms_without_statistics(model)
    if not norms:
        return 0
    counts = dict.fromkeys(norms, 0)
    sums = {norm: torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}

    def count(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _Norm)
        flat = arguments[0].detach().transpose(0, 1).flatten(1)
        # Apple's devices have no float64; from others so much had better not be moved
        values = (flat.cpu() if flat.device.type == "mps" else flat).double()
        counts[norm] += values.shape[1]
        sums[norm] += torch.stack([values.sum(1), values.square().sum(1)]).cpu()

    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    device = next(model.parameters()).device
    try:
        with eval_mode(model):
            for batch in batches:
                model(batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    measured = [norm for norm in norms if counts[norm]]
    for norm in measured:
        mean, square = sums[norm] / counts[norm]
        _hold(norm, mean, (square - mean.square()).clamp_min(0))
    return len(measured)


def _hold(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    own = norm.weight.device
    old_mean, old_variance, weight, bias = (
        tensor.detach().cpu().double() for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    slope = weight / (old_variance + norm.eps).sqrt()
    norm.weight.copy_((slope * (variance + norm.eps).sqrt()).to(own))
    norm.bias.copy_((bias + slope * (mean - old_mean)).to(own))
    norm.running_mean.copy_(mean.to(own))
    norm.running_var.copy_(variance.to(own))
