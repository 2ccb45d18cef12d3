"""Turn the bases of attention's heads, so that channels are worth unequally much: each head computes the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from netgraft.deriving.axes import Atom
from netgraft.deriving.following import ChannelMap
from netgraft.deriving.heads import Logits, Rows, Values
from netgraft.deriving.proofs import agree, exactly, those_that_hold, unnumbered
from netgraft.deriving.selection import cholesky
from netgraft.deriving.statistics import Moments, input_moments
from netgraft.modules import eval_mode

Bases = tuple[Tensor, Tensor]
"""Of each head's channels on both sides, (heads, width, width) each, float64; the one is the other's inverse,
transposed."""

DAMPING = 1e-6
"""Of what layers take in, times the mean of its diagonal: few views say little of directions that they don't show."""

TINY = 1e-6
"""Part of the largest singular value below which a direction counts as none."""


def turnable_heads(
    model: nn.Module, found: ChannelMap, atoms: Collection[Atom], probe: Tensor
) -> tuple[Logits | Values, ...]:
    """Return the heads whose bases may be chosen: with bases at random the model computes in float64 what it did.

    Args:
        model: The teacher.
        found: Its channels.
        atoms: Widths of heads that are places.
        probe: Images (B, C, H, W).
    """
    candidates = [heads for heads in found.heads if heads.atom in atoms]
    if not candidates:
        return ()
    exact = exactly(model)
    images = probe.cpu().double()

    @torch.no_grad()
    def answers(some: list[Logits | Values]) -> Tensor:
        turned = exactly(model)
        generator = torch.Generator().manual_seed(0)
        for heads in some:
            turn(turned, heads, _bases_at_random(heads, generator))
        with eval_mode(turned):
            return turned(images)

    with torch.no_grad(), eval_mode(exact):
        expected = exact(images)
    alike = {heads: (type(heads), unnumbered(_sides(heads)[0].layer)) for heads in candidates}
    return tuple(those_that_hold(candidates, lambda some: agree(answers(some), expected), alike.__getitem__))


def _bases_at_random(heads: Logits | Values, generator: torch.Generator) -> Bases:
    first, _ = _sides(heads)
    count, width = first.numbers.shape
    noise = torch.randn(count, width, width, generator=generator, dtype=torch.float64)
    bases = torch.eye(width, dtype=torch.float64) + noise / (4 * width**0.5)
    return bases, torch.linalg.inv(bases).mT


def turn_head_bases(model: nn.Module, turnable: Sequence[Logits | Values], batches: Sequence[Tensor]) -> None:
    """Turn the bases of heads, in place: channel j of a head is its j-th principal one then.

    Args:
        model: Whose weights change, and which computes what it did.
        turnable: Heads whose bases may be chosen, from :func:`turnable_heads`.
        batches: Views (B, C, H, W) each.
    """
    names = {rows.layer for heads in turnable for rows in _taken_in(heads)}
    moments = input_moments(model, batches, {name: model.get_submodule(name) for name in names})
    for heads in turnable:
        turn(model, heads, principal_bases(model, heads, moments))


def _sides(heads: Logits | Values) -> tuple[Rows, Rows]:
    return (heads.queries, heads.keys) if isinstance(heads, Logits) else (heads.written, heads.read)


def _taken_in(heads: Logits | Values) -> tuple[Rows, ...]:
    """Return the layers of which the inputs count."""
    return (heads.queries, heads.keys) if isinstance(heads, Logits) else (heads.written,)


def principal_bases(model: nn.Module, heads: Logits | Values, moments: Mapping[str, Moments]) -> Bases:
    """Return the bases in which each head's channels are principal, the first one the largest.

    Those of the singular values of ``W_Q^T W_K``, whitened by what both layers take in: queries with the constant that
    their bias adds, keys about their mean, since what all keys share changes no attention. And of ``W_O W_V``, whitened
    by what values are made of, about its mean where the reader can add a constant. Both sides get the root of a
    singular value, so neither is much larger than the other.

    Args:
        model: Has the layers.
        heads: Of one attention.
        moments: Of what the layers take in that write them.
    """
    if isinstance(heads, Logits):
        first = _factors(model, heads.queries, moments, centred=False)
        second = _factors(model, heads.keys, moments, centred=True)
    else:
        reader = _layer(model, heads.read)
        first = _factors(model, heads.written, moments, centred=reader.bias is not None)
        columns = reader.weight.detach().cpu().double().flatten(1).T[heads.read.numbers]  # (heads, width, outputs)
        second = _triangles(columns.mT)
    pairs = [bases_of(one, other) for one, other in zip(first, second, strict=True)]
    return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


def _factors(model: nn.Module, rows: Rows, moments: Mapping[str, Moments], *, centred: bool) -> Tensor:
    """Return (heads, width, width): each with its transpose gives the mean products of a head's channels."""
    layer, of_inputs = _layer(model, rows), moments[rows.layer]
    weight = layer.weight.detach().cpu().double().flatten(1)
    factor = cholesky(of_inputs.covariance(centred=True), DAMPING)
    spread = factor.T @ weight.T  # (inputs, outputs)
    if not centred:
        mean = weight @ of_inputs.mean
        if layer.bias is not None:
            mean = mean + layer.bias.detach().cpu().double()
        spread = torch.cat([spread, mean[None]])
    return _triangles(spread.T[rows.numbers].mT)


def _triangles(tall: Tensor) -> Tensor:
    """Return (heads, width, width) of (heads, n, width): factors of the same products, by QR and not by squaring."""
    heads, count, width = tall.shape
    if count < width:
        tall = torch.cat([tall, tall.new_zeros(heads, width - count, width)], 1)
    return torch.linalg.qr(tall, mode="r").R.mT


def bases_of(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return bases of two sides whose products stay, the largest singular value of ``first^T second`` first.

    Args:
        first: (width, width), a factor of the one side's covariance.
        second: Of the other one's.

    Returns:
        ``A`` and ``B``, (width, width) each, with ``A^T B = 1``; ``A first first^T A^T`` and ``B second second^T B^T``
        are the diagonal of singular values.
    """
    left, values, right = torch.linalg.svd(first.T @ second)
    rank = int((values > TINY * values[0]).sum())
    scale = values[:rank].rsqrt()[:, None]
    one, other = scale * (right[:rank] @ second.T), scale * (left[:, :rank].T @ first.T)
    if rank < len(values):
        # what neither side misses: each half of the rest is blind to the other side's first half
        rest, rest_of_other = (torch.linalg.svd(each, full_matrices=True).Vh[rank:] for each in (other, one))
        left, values, right = torch.linalg.svd(rest @ rest_of_other.T)
        scale = values.rsqrt()[:, None]
        one = torch.cat([one, scale * (left.T @ rest)])
        other = torch.cat([other, scale * (right @ rest_of_other)])
    # once more from the one side, so that nothing but rounding is left
    return one, torch.linalg.inv(one).T


@torch.no_grad()
def turn(model: nn.Module, heads: Logits | Values, bases: Bases) -> None:
    """Give the heads of one attention other bases, in place.

    Args:
        model: Has the layers.
        heads: Of the attention.
        bases: Of both sides: queries and keys, or values and what reads them.
    """
    first, second = _sides(heads)
    _turn_outputs(_layer(model, first), first.numbers, bases[0])
    if isinstance(heads, Logits):
        _turn_outputs(_layer(model, second), second.numbers, bases[1])
    else:
        weight = _layer(model, second).weight
        columns = weight.cpu().double().flatten(1).T.clone()  # (inputs, outputs)
        columns[second.numbers] = bases[1] @ columns[second.numbers]
        weight.copy_(columns.T.reshape(weight.shape))


def _turn_outputs(layer: nn.Conv2d | nn.Linear, rows: Tensor, bases: Tensor) -> None:
    weight = layer.weight.cpu().double().clone()
    weight[rows] = (bases @ weight.flatten(1)[rows]).reshape(*rows.shape, *weight.shape[1:])
    layer.weight.copy_(weight)
    if layer.bias is not None:
        bias = layer.bias.cpu().double().clone()
        bias[rows] = (bases @ bias[rows][..., None]).squeeze(-1)
        layer.bias.copy_(bias)


def _layer(model: nn.Module, rows: Rows) -> nn.Conv2d | nn.Linear:
    layer = model.get_submodule(rows.layer)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer
