"""Give convolutions low ranks to choose: in bases whose channels are principal directions of what they give.

Between the two convolutions that one is made of lie channels of which nothing but the second one takes notice, so
their basis is free: that of the principal directions of the outputs, of which the last can go (Zhang et al.,
"Accelerating Very Deep Convolutional Networks for Classification and Detection", PAMI 2016, section 3.1).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from netgraft.deriving.low_rank import LowRank, factor, low_rank_layers, pays
from netgraft.deriving.proofs import agree, exactly, those_that_hold, unnumbered
from netgraft.deriving.selection import cholesky, has_intercept
from netgraft.deriving.statistics import input_moments
from netgraft.modules import eval_mode

DAMPING = 1e-6
"""Of what lies between, times the mean of its diagonal: few views say little of directions that they don't show."""


def with_low_rank(model: nn.Module, probe: Tensor) -> nn.Module:
    """Return a copy whose convolutions are two each where that can be cheaper; the model itself where it never can.

    It computes the same, bit by bit, as long as nothing is narrowed; in any basis between the two it is proven to
    compute the same in float64.

    Args:
        model: A classifier; unchanged.
        probe: Images (B, C, H, W).
    """
    if not any(map(_can_be_cheaper, model.modules())):
        return model
    exact, images = exactly(model), probe.cpu().double()
    try:
        with torch.no_grad(), eval_mode(exact):
            candidates = _called_once(exact, images)
            expected = exact(images)
    except Exception:  # whatever a forward raises is said where channels are followed
        return model
    if not (isinstance(expected, Tensor) and expected.isfinite().all()):
        return model

    @torch.no_grad()
    def holds(names: Sequence[str]) -> bool:
        other = copy.deepcopy(exact)
        factor(other, names)
        generator = torch.Generator().manual_seed(0)
        for name in names:
            first, _ = _both(other, name)
            width = len(first.weight)
            noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
            basis = torch.eye(width, dtype=torch.float64) + noise / (4 * width**0.5)
            _turn(other, name, basis, torch.linalg.inv(basis))
        try:
            with eval_mode(other):
                return agree(other(images), expected)
        except Exception:  # whatever a forward raises that looks into its convolutions
            return False

    names = those_that_hold(candidates, holds, unnumbered)
    if not names:
        return model
    factored = copy.deepcopy(model)
    factor(factored, names)
    return factored


def _can_be_cheaper(module: nn.Module) -> bool:
    """Whether two convolutions could cost less; 1x1 ones are narrowed, which lost less where both were tried."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.weight[0, 0].numel() > 1
        and pays(1, module.weight[0].numel(), len(module.weight))
    )


def _called_once(model: nn.Module, images: Tensor) -> list[str]:
    """Return the convolutions that may become two: one call of each in a forward, and no part of two already."""
    parts = {part for name in low_rank_layers(model) for part in model.get_submodule(name).children()}
    layers = {name: module for name, module in model.named_modules() if _can_be_cheaper(module) and module not in parts}
    calls: Counter[str] = Counter()
    handles = [module.register_forward_hook(partial(_count, calls, name)) for name, module in layers.items()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in layers if calls[name] == 1]


def _count(calls: Counter[str], name: str, *_: object) -> None:
    calls[name] += 1


def turn_ranks(
    model: nn.Module, batches: Sequence[Tensor], norms: Mapping[str, nn.modules.batchnorm._BatchNorm | None]
) -> None:
    """Turn what lies between two convolutions to the principal directions of their outputs, in place.

    Args:
        model: Whose weights change, and which computes what it did.
        batches: Views (B, C, H, W) each.
        norms: The batch norm behind each two, by their name; None where there is none.
    """
    seconds = {name: _both(model, name)[1] for name in norms}
    moments = input_moments(model, batches, seconds)
    for name, second in seconds.items():
        # the mean is no direction where a constant can be added to what they give
        covariance = moments[name].covariance(centred=has_intercept(second, norms[name]))
        written = second.weight.detach().cpu().double().flatten(1)
        # thin: whatever the second one can give lies in the span of the directions
        directions = torch.linalg.svd(written @ cholesky(covariance, DAMPING), full_matrices=False).U
        _turn(model, name, directions.T @ written, torch.linalg.pinv(written) @ directions)


@torch.no_grad()
def _turn(model: nn.Module, name: str, basis: Tensor, inverse: Tensor) -> None:
    """Multiply what the first one gives by a basis (rank, rank), and the second one's weight by its inverse."""
    first, second = _both(model, name)
    weight = basis @ first.weight.cpu().double().flatten(1)
    first.weight.copy_(weight.reshape(first.weight.shape))
    written = second.weight.cpu().double().flatten(1) @ inverse
    second.weight.copy_(written.reshape(second.weight.shape))


def _both(model: nn.Module, name: str) -> tuple[nn.Conv2d, nn.Conv2d]:
    layers = model.get_submodule(name)
    assert isinstance(layers, LowRank)
    return layers.both
