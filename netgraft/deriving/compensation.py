"""Make up for channels that are gone, in closed form, layer by layer: from what each is by those that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netgraft.deriving.axes import Atom
from netgraft.deriving.selection import Reader, cholesky

DAMPING = 1e-6
"""Of the covariance of all channels, times the mean of its diagonal: less than for the order in which they go, so
that copies and sums of others go without an error."""


@dataclass(frozen=True, eq=False)
class Compensation:
    """A layer's weights once some of what it takes in is gone.

    Attributes:
        weight: As large as before; zero for what is gone.
        shift: What is to be added to the outputs, (O,); None where the layer can't.
    """

    weight: Tensor
    shift: Tensor | None


def compensated(reader: Reader, kept: Mapping[Atom, Tensor]) -> Compensation:
    """Return the weights that make up for channels that are gone, from what each of these is by those that stay.

    ``W' = W_S + W_P B`` with ``B = Sigma_PS (Sigma_SS + lambda I)^-1``, and ``W_P (mu_P - B mu_S)`` for the constant;
    at the borders of a convolution that pads with zeros the constant is not exact.

    Args:
        reader: The layer.
        kept: Channels that stay, of each place that is narrowed.
    """
    stay, go = _parted(reader, kept)
    covariance = reader.covariance()
    factor = cholesky(covariance[stay][:, stay], DAMPING, like=covariance)
    return _made_up(reader, stay, go, torch.cholesky_solve(covariance[stay][:, go], factor).T)


def precision(reader: Reader) -> Tensor:
    """Return the inverse of the covariance of what a layer takes in, (F, F), float64."""
    return torch.cholesky_inverse(cholesky(reader.covariance(), DAMPING))


def compensated_by_precision(reader: Reader, precision: Tensor, kept: Mapping[Atom, Tensor]) -> Compensation:
    """Return what :func:`compensated` does, sooner where few channels of many are gone.

    With the inverse ``K`` of the covariance of all ``B = -K_PP^-1 K_PS``, as conditional means are of normal variables.

    Args:
        reader: The layer.
        precision: Its own, (F, F), from :func:`precision`; serves all places that it reads.
        kept: Channels that stay, of each place that is narrowed.
    """
    stay, go = _parted(reader, kept)
    factor = torch.linalg.cholesky(precision[go][:, go])
    return _made_up(reader, stay, go, -torch.cholesky_solve(precision[go][:, stay], factor))


def _parted(reader: Reader, kept: Mapping[Atom, Tensor]) -> tuple[Tensor, Tensor]:
    """Return which inputs stay, (S,), and which go, (P,)."""
    stay = reader.inputs.indices(kept)
    gone = torch.ones(reader.inputs.size, dtype=torch.bool)
    gone[stay] = False
    return stay, gone.nonzero().flatten()


def _made_up(reader: Reader, stay: Tensor, go: Tensor, by_others: Tensor) -> Compensation:
    """Return the weights once each input that goes is ``by_others`` (P, S) of those that stay."""
    rows = reader.rows()
    new = torch.zeros_like(rows)
    shift = None
    # zero between groups, and within a group the rows' columns mean the same outputs
    new[stay] = rows[stay] + by_others.T @ rows[go]
    if reader.has_intercept:
        mean = reader.moments.mean
        constant = torch.zeros(len(rows), dtype=rows.dtype)
        constant[go] = mean[go] - by_others @ mean[stay]
        taps = reader.layer.weight[0, 0].numel()
        per_output = rows.reshape(reader.groups, -1, rows.shape[1] // taps, taps).sum(-1)
        shift = (constant.reshape(reader.groups, -1, 1) * per_output).sum(1).flatten()
    return Compensation(reader.weight_of(new), shift)


@torch.no_grad()
def add_to_output(layer: nn.Conv2d | nn.Linear, norm: nn.modules.batchnorm._BatchNorm | None, shift: Tensor) -> None:
    """Add a constant (O,) to what a layer gives: to its bias, or off the mean that the norm behind it takes away."""
    if layer.bias is not None:
        layer.bias += shift.to(layer.bias)
    else:
        assert norm is not None
        assert norm.running_mean is not None
        norm.running_mean -= shift.to(norm.running_mean)
