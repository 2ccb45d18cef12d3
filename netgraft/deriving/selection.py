"""Which channels go first: those whose loss the layers behind them can make up for best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from netgraft.deriving.axes import Atom, Axis
from netgraft.deriving.places import Place
from netgraft.deriving.statistics import Moments

DAMPING = 1e-3
"""Of a covariance, times the mean of its diagonal: what few images leave undecided is decided for small weights."""


def groups_of(layer: nn.Conv2d | nn.Linear) -> int:
    """Return the groups of a convolution; 1 of a linear layer."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def has_intercept(layer: nn.Conv2d | nn.Linear, norm: nn.modules.batchnorm._BatchNorm | None) -> bool:
    """Whether a constant can be added to what a layer gives: to its bias, or through the norm behind it."""
    return layer.bias is not None or (norm is not None and norm.running_mean is not None)


class Surgery(Protocol):
    """Something that sums over channels, while these leave it one by one."""

    def losses(self, channels: Tensor) -> Tensor:
        """Return what each of the channels (n,) that are left adds to the squared error once it goes, (n,), float64."""

    def remove(self, channel: int) -> None:
        """Let one go."""

    def pack(self, gone: Tensor) -> None:
        """Need no more memory for those that went since this was done last."""


class Losing(Protocol):
    """Something that sums over channels."""

    def begin(self, atom: Atom) -> Surgery:
        """Return it with all channels of ``atom``."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over channels, with the moments of what it takes in.

    Attributes:
        name: Of the layer.
        layer: Convolution or linear layer.
        inputs: Axis of what it sums over.
        moments: Of its inputs, channel by channel.
        norm: Batch norm behind it that takes in nothing else; None where there is none.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    inputs: Axis
    moments: Moments
    norm: nn.modules.batchnorm._BatchNorm | None

    @property
    def groups(self) -> int:
        """Of a convolution; 1 of a linear layer."""
        return groups_of(self.layer)

    @property
    def has_intercept(self) -> bool:
        """Whether a constant can be added to what the layer gives."""
        return has_intercept(self.layer, self.norm)

    def begin(self, atom: Atom) -> _Surgery:
        """Return the layer with all channels of ``atom``, while these leave."""
        if len(self.inputs.segments) == 1:
            return _Surgery.of_each(self, [atom])[atom]
        return self._surgeries[atom].copy()

    @cached_property
    def _surgeries(self) -> dict[Atom, _Surgery]:
        """Of all that is concatenated, which the same inverse serves."""
        return _Surgery.of_each(self, self.inputs.atoms())

    def covariance(self) -> Tensor:
        """Return (F, F), float64: about the mean if the layer can add a constant; zero between groups."""
        covariance = self.moments.covariance(centred=self.has_intercept)
        if self.groups > 1:
            group = torch.arange(len(covariance)) // (len(covariance) // self.groups)
            covariance = covariance * (group[:, None] == group[None, :])
        return covariance

    def rows(self) -> Tensor:
        """Return the weight as (F, Q), float64: what each channel adds to the outputs of its group, tap by tap."""
        weight = self.layer.weight.detach().cpu().double()
        grouped = weight.reshape(self.groups, -1, weight.shape[1], weight[0, 0].numel())
        return grouped.transpose(1, 2).flatten(2).flatten(0, 1)

    def weight_of(self, rows: Tensor) -> Tensor:
        """Return the weight that ``rows`` (F, Q) are made of; the inverse of :meth:`rows`."""
        shape = self.layer.weight.shape
        taps = self.layer.weight[0, 0].numel()
        return rows.reshape(self.groups, shape[1], -1, taps).transpose(1, 2).reshape(shape)


MOST_POWERS = 6
"""Of ten, by which damping is raised at most."""


def damped(covariance: Tensor, by: float, like: Tensor) -> Tensor:
    """Return a covariance with ``by`` times the mean of another one's diagonal added to its own."""
    scale = like.diagonal().mean().clamp_min(1e-12)
    return covariance + by * scale * torch.eye(len(covariance), dtype=covariance.dtype)


def cholesky(covariance: Tensor, by: float, like: Tensor | None = None) -> Tensor:
    """Return the Cholesky factor of a covariance, damped by ``by``, or by the least power of ten more that it needs.

    A covariance summed up in single precision may have directions of a little less than nothing.

    Args:
        covariance: (F, F), float64.
        by: In parts of the mean of a diagonal.
        like: Whose diagonal that is, where the covariance is a part of a larger one; its own if None.
    """
    like = covariance if like is None else like
    for power in range(MOST_POWERS):
        factor, failed = torch.linalg.cholesky_ex(damped(covariance, by * 10**power, like))
        if not failed:
            return factor
    return torch.linalg.cholesky(damped(covariance, by * 10**MOST_POWERS, like))


@dataclass(frozen=True, eq=False)
class Removal:
    """Channels of a place in the order in which they go.

    Attributes:
        order: (width of the place,) indices, the most dispensable first.
        losses: (width of the place,), float64: what each adds to the squared error of the readers' outputs once their
            other weights have made up for it, and for those before it, as well as they can; summed over readers, each
            in parts of its outputs' energy.
    """

    order: Tensor
    losses: Tensor


def surgeon_removal(place: Place, readers: Sequence[Losing]) -> Removal:
    """Take away the channels of a place one by one in the manner of optimal brain surgeon: the least loss first.

    Behind each removal weights and inverse covariances are those of the layers without it.

    Args:
        place: Whose channels.
        readers: All that sums over them: layers, and logits of attention.

    Source: Hassibi & Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", NIPS 1992,
    equations 5 and 6, with one channel's weights in the place of a single one.
    """
    held = torch.zeros(place.width, dtype=torch.bool)
    held[list(place.held)] = True
    return _remove(
        place, readers, lambda left, losses: int(losses.masked_fill(held[left], torch.finfo(losses.dtype).max).argmin())
    )


def removal_in_order(order: Tensor, place: Place, readers: Sequence[Losing]) -> Removal:
    """Take away the channels of a place in a given order.

    Args:
        order: (width of the place,) indices.
        place: Whose channels.
        readers: All that sums over them: layers, and logits of attention.
    """
    given = iter(order.tolist())
    return _remove(place, readers, lambda left, losses: int((left == next(given)).nonzero()))


def _remove(place: Place, readers: Sequence[Losing], choose: Callable[[Tensor, Tensor], int]) -> Removal:
    """Remove all channels; ``choose`` says which of those that are left goes next, by their losses."""
    states = [reader.begin(place.atom) for reader in readers]
    left = torch.arange(place.width)
    order: list[int] = []
    lost: list[float] = []
    packed = place.width
    while len(left):
        losses = torch.stack([state.losses(left) for state in states]).sum(0)
        chosen = choose(left, losses)
        gone_next = int(left[chosen])
        order.append(gone_next)
        lost.append(float(losses[chosen]))
        left = left[left != gone_next]
        for state in states:
            state.remove(gone_next)
        if len(left) <= 0.75 * packed:
            gone = torch.tensor(order[place.width - packed :])
            packed = len(left)
            for state in states:
                state.pack(gone)
    return Removal(torch.tensor(order), torch.tensor(lost, dtype=torch.float64))


PENDING = 64
"""Columns by which matrices are changed at once: one by one each change would go through all of a matrix."""


class _Changing:
    """A symmetric matrix (F, F) that products of few columns are taken from, seen as if they had been already.

    Args:
        matrix: Changed in place.
        positions: Where the blocks of its diagonal stand that are looked at again and again, (n, R).
    """

    def __init__(self, matrix: Tensor, positions: Tensor) -> None:
        self.matrix = matrix
        self.blocks = matrix[positions[:, :, None], positions[:, None, :]]
        self._left = matrix.new_empty(len(matrix), 0)
        self._right = matrix.new_empty(len(matrix), 0)

    def columns(self, at: Tensor) -> Tensor:
        """Return some columns, (F, R)."""
        return self.matrix[at].T - self._left @ self._right[at].T

    def subtract(self, left: Tensor, right: Tensor, positions: Tensor) -> None:
        """Take away ``left @ right.T``, columns (F, P) each; the product is symmetric."""
        self.blocks -= left[positions] @ right[positions].mT
        self._left, self._right = torch.cat([self._left, left], 1), torch.cat([self._right, right], 1)
        if self._left.shape[1] >= PENDING:
            self.settle()

    def settle(self) -> None:
        """Change the matrix."""
        self.matrix.addmm_(self._left, self._right.T, alpha=-1)
        self._left, self._right = self._left[:, :0], self._right[:, :0]

    def only(self, numbers: Tensor) -> None:
        """Leave out all other rows and columns; the blocks stay."""
        self.settle()
        self.matrix = self.matrix[numbers][:, numbers]
        self._left, self._right = self._left[numbers], self._right[numbers]


class _Surgery:
    """One reader while channels of one place leave it.

    What else the reader takes in stays, and has its part in the inverse: its own rows and columns aren't needed.

    Args:
        positions: Where each channel stands among the place's inputs, (n, R).
        inverse: Rows and columns of those inputs in the inverse of the damped covariance of all, (F, F); changed.
        weights: Products of the weights' rows, (F, F): all that the losses depend on; changed.
        energy: Of the outputs, by which losses are divided.
    """

    def __init__(self, positions: Tensor, inverse: Tensor, weights: Tensor, energy: Tensor) -> None:
        self._positions, self._energy = positions, energy
        self._inverse, self._weights = _Changing(inverse, positions), _Changing(weights, positions)

    @classmethod
    def of_each(cls, reader: Reader, atoms: Iterable[Atom]) -> dict[Atom, _Surgery]:
        """Return one for each set of channels that the reader sums over."""
        covariance = reader.covariance()
        rows = reader.rows()
        weights = rows @ rows.T
        if reader.groups > 1:
            group = torch.arange(len(weights)) // (len(weights) // reader.groups)
            weights = weights * (group[:, None] == group[None, :])
        energy = (weights * covariance).sum().clamp_min(1e-30)
        inverse = torch.cholesky_inverse(cholesky(covariance, DAMPING))
        surgeries = {}
        for atom in atoms:
            at = reader.inputs.positions_of(atom)
            its = at.flatten()
            numbers = torch.arange(len(its)).reshape(at.shape)
            surgeries[atom] = cls(numbers, inverse[its][:, its], weights[its][:, its], energy)
        return surgeries

    def copy(self) -> _Surgery:
        """Return one that channels may leave without leaving this one, of which none has left."""
        inverse, weights = (each.matrix.clone() for each in (self._inverse, self._weights))
        return _Surgery(self._positions, inverse, weights, self._energy)

    def losses(self, channels: Tensor) -> Tensor:
        inverse, weights = self._inverse.blocks[channels], self._weights.blocks[channels]
        if inverse.shape[1] == 1:
            return (weights / inverse.clamp_min(1e-30)).flatten() / self._energy
        eye = 1e-12 * torch.eye(inverse.shape[1], dtype=inverse.dtype)
        return torch.linalg.solve(inverse + eye, weights).diagonal(dim1=1, dim2=2).sum(1) / self._energy

    def remove(self, channel: int) -> None:
        at = self._positions[channel]
        block, its_weights = self._inverse.blocks[channel], self._weights.blocks[channel]
        columns = self._inverse.columns(at)
        # one column is divided by, which takes a hundredth of the time
        gain = columns / block if len(at) == 1 else torch.linalg.solve(block, columns, left=False)  # (F, R)
        # W <- (I - gain E^T) W, and so are the products of its rows
        rest = self._weights.columns(at) - gain @ its_weights / 2
        self._inverse.subtract(gain, columns, self._positions)
        self._weights.subtract(torch.cat([gain, rest], 1), torch.cat([rest, gain], 1), self._positions)

    def pack(self, gone: Tensor) -> None:
        """Leave out the inputs of channels that went since this was done last; nothing is asked of them any more."""
        stay = torch.ones(len(self._inverse.matrix), dtype=torch.bool)
        stay[self._positions[gone].flatten()] = False
        numbers = stay.nonzero().flatten()
        for matrix in (self._inverse, self._weights):
            matrix.only(numbers)
        self._positions = (stay.cumsum(0) - 1)[self._positions]


def kept_channels(order: Tensor, width: int) -> Tensor:
    """Return the ``width`` channels that would go last, ascending."""
    return order[len(order) - width :].sort().values
