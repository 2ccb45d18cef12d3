"""Residual streams that are read through layer norms alone, in bases whose channels are worth unequally much.

A layer norm takes off the mean and divides by what is left, then weighs each channel. With its weights moved into the
layers that read it and the mean taken off by the layers that write to the stream, what is left to it is the same in
every basis, so that the whole stream can be turned (Ashkboos et al., "SliceGPT", ICLR 2024, section 3): to its
principal directions, of which the last can go. The mean's own direction is the first one; it stays, and holds nothing.
Once the channels have gone, a plain layer norm takes the place of the other one again: the stream is turned so that the
empty direction becomes the mean of those that are left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from netgraft.deriving.axes import Atom, Axis
from netgraft.deriving.following import ChannelMap, Product
from netgraft.deriving.narrowing import tensors_of
from netgraft.deriving.proofs import agree, exactly
from netgraft.deriving.residual import scale_behind
from netgraft.deriving.statistics import Moments
from netgraft.deriving.stream_norm import StreamNorm
from netgraft.modules import eval_mode, put_module

ROWS = 256
"""Of each batch of views and each norm, that principal directions are found from."""

Side = Literal["reads", "writes", "scales", "norms"]
"""What a tensor has to do with a stream, along one of its dimensions."""


@dataclass(frozen=True, eq=False)
class _Stream:
    """A residual stream and what it is read through.

    Attributes:
        atom: Its channels.
        norms: Names of the layer norms.
        readers: Layers that take in what a norm gave.
    """

    atom: Atom
    norms: tuple[str, ...]
    readers: tuple[Product, ...]


def with_stream_norms(model: nn.Module, found: ChannelMap, probe: Tensor) -> nn.Module | None:
    """Return a copy that computes the same, in which streams can be turned and lose channels; None if there is none.

    Args:
        model: Unchanged.
        found: Its channels.
        probe: Images (B, C, H, W), on which both must give the same in float64.
    """
    candidates = list(_candidates(model, found))
    if not candidates:
        return None
    exact, images = exactly(model), probe.cpu().double()
    held: list[_Stream] = []
    for stream in candidates:
        if _computes_the_same(exact, _centred(exact, found, [*held, stream], images), images):
            held.append(stream)
    if not held:
        return None
    like = next(model.parameters())
    return _centred(exact, found, held, images).to(like.device, like.dtype)


def _candidates(model: nn.Module, found: ChannelMap) -> Iterator[_Stream]:
    """Yield streams of which nothing is read but through layer norms whose weights can be moved into the readers."""
    of_atom: dict[Atom, list[str]] = {}
    for name, axis in found.layer_norms.items():
        norm, atoms = model.get_submodule(name), axis.atoms()
        is_affine = isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
        if is_affine and len(atoms) == len(axis.segments) == 1:
            of_atom.setdefault(atoms[0], []).append(name)
    all_axes = [axis for axes in found.tensors.values() for axis in axes]
    for atom, norms in of_atom.items():
        readers = [product for product in found.products if atom in product.inputs.atoms()]
        if (
            readers
            and all(_is(axis, atom) for axis in all_axes if atom in axis.atoms())
            and all(each.layer and each.norm in norms and each.groups is None for each in readers)
            and all(model.get_submodule(each.layer).bias is not None for each in readers)
        ):
            yield _Stream(atom, tuple(norms), tuple(readers))


def _is(axis: Axis, atom: Atom) -> bool:
    """Whether an axis is one atom and nothing else."""
    return len(axis.segments) == 1 and axis.atoms() == [atom]


def _sides(model: nn.Module, found: ChannelMap, atom: Atom) -> Iterator[tuple[str, int, Side]]:
    """Yield the tensors that have a stream along a dimension: their names, the dimension, and what they do there.

    Of those that ``model`` still has.
    """
    modules, present = dict(model.named_modules()), dict(tensors_of(model))
    for name, axes in found.tensors.items():
        owner = modules.get(name.rpartition(".")[0])
        for dim, axis in enumerate(axes if name in present else ()):
            if not _is(axis, atom):
                continue
            if isinstance(owner, nn.LayerNorm | StreamNorm):
                yield name, dim, "norms"
            elif isinstance(owner, nn.Conv2d | nn.Linear):
                yield name, dim, "reads" if dim == 1 else "writes"
            else:
                yield name, dim, "scales" if len(axes) == 1 else "writes"


@torch.no_grad()
def _centred(exact: nn.Module, found: ChannelMap, streams: Sequence[_Stream], images: Tensor) -> nn.Module:
    """Return a copy with norms of streams instead of layer norms, in which the mean's direction is the first channel.

    Whether it computes the same is to be seen.
    """
    changed = copy.deepcopy(exact)
    tensors = dict(tensors_of(changed))
    for stream in streams:
        width = stream.atom.size
        onto = reflection(width)
        for product in stream.readers:
            layer, norm = changed.get_submodule(product.layer), exact.get_submodule(product.norm)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            assert isinstance(norm, nn.LayerNorm)
            assert layer.bias is not None
            layer.bias += layer.weight.reshape(*layer.weight.shape[:2], -1).sum(-1) @ norm.bias
            layer.weight.mul_(norm.weight.reshape(-1, *[1] * (layer.weight.ndim - 2)))
        sides = list(_sides(exact, found, stream.atom))
        if any(side == "scales" for _, _, side in sides):
            _move_scales(exact, changed, sides, images)
        for name, dim, side in sides:
            if side in {"reads", "writes"}:
                _multiply(tensors[name], dim, onto if side == "reads" else onto @ centring(width))
        for name in stream.norms:
            norm = exact.get_submodule(name)
            assert isinstance(norm, nn.LayerNorm)
            put_module(changed, name, StreamNorm(width, norm.eps).to(images))
    return changed


def _move_scales(exact: nn.Module, changed: nn.Module, sides: Sequence[tuple[str, int, Side]], images: Tensor) -> None:
    """Move what a branch is multiplied by, channel by channel, into the layer whose output it is."""
    tensors = dict(tensors_of(changed))
    written = {name.rpartition(".")[0] for name, _, side in sides if side == "writes"}
    for name, layer in changed.named_modules():
        if name in written and isinstance(layer, nn.Conv2d | nn.Linear):
            scale = scale_behind(exact, images, exact.get_submodule(name))
            layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
            if layer.bias is not None:
                layer.bias.mul_(scale)
    for name, _, side in sides:
        if side == "scales":
            tensors[name].fill_(1.0)


def _multiply(tensor: Tensor, dim: int, matrix: Tensor) -> None:
    """Multiply a matrix (N, N) from the left with what lies along one dimension, in place and in double precision."""
    product = torch.tensordot(matrix, tensor.cpu().double(), dims=([1], [dim])).movedim(0, dim)
    tensor.copy_(product)


def reflection(width: int) -> Tensor:
    """Return the reflection (width, width), float64, that takes the direction of the mean to the first channel.

    It is its own inverse.
    """
    mean = torch.full((width,), 1 / math.sqrt(width), dtype=torch.float64)
    axis = mean - torch.eye(width, dtype=torch.float64)[0]
    square = axis @ axis
    # of one channel they are the same
    return torch.eye(width, dtype=torch.float64) - 2 * torch.outer(axis, axis) / square.clamp_min(1e-300)


def centring(width: int) -> Tensor:
    """Return what takes the mean off, (width, width), float64."""
    return torch.eye(width, dtype=torch.float64) - 1 / width


@torch.no_grad()
def _computes_the_same(exact: nn.Module, changed: nn.Module, images: Tensor) -> bool:
    with eval_mode(exact), eval_mode(changed):
        expected = exact(images)
        try:
            return agree(changed(images), expected)
        except Exception:  # whatever a forward raises that counts on its layer norms
            return False


@dataclass(frozen=True, eq=False)
class StreamBases:
    """The streams of a model with norms of streams, and in which basis each of them is.

    Attributes:
        found: The model's channels.
        turns: Of each stream, what its channels are of the teacher's once the mean is off: (width, width), float64,
            orthogonal.
    """

    found: ChannelMap
    turns: Mapping[Atom, Tensor]

    @classmethod
    def of(cls, found: ChannelMap) -> StreamBases:
        """Return those of a model from :func:`with_stream_norms`, whose first channel is the mean's direction."""
        return cls(
            found, {atom: reflection(atom.size) for axis in found.stream_norms.values() for atom in axis.atoms()}
        )

    @torch.no_grad()
    def turned(self, model: nn.Module, batches: Sequence[Tensor]) -> StreamBases:
        """Turn all streams of a model to their principal directions, in place: it computes the same.

        Args:
            model: In these bases.
            batches: Views (B, C, H, W) each.
        """
        turns = {}
        tensors = dict(tensors_of(model))
        for atom, moments in self._moments(model, batches).items():
            # uncentred: what a constant part holds up in the norm counts too
            seconds = [each.covariance(centred=False) for each in moments]
            second = torch.stack([each / each.trace() for each in seconds]).sum(0)
            principal = torch.linalg.eigh(second[1:, 1:]).eigenvectors.flip(1).T
            onto = torch.block_diag(torch.ones(1, 1, dtype=torch.float64), principal)
            for name, dim, side in _sides(model, self.found, atom):
                if side in {"reads", "writes"}:
                    _multiply(tensors[name], dim, onto)
            turns[atom] = onto @ self.turns[atom]
        return replace(self, turns=turns)

    def _moments(self, model: nn.Module, batches: Sequence[Tensor]) -> dict[Atom, list[Moments]]:
        """Return moments of what the norms of each stream give."""
        generator = torch.Generator().manual_seed(0)
        of_norm = {name: Moments.empty(axis.size) for name, axis in self.found.stream_norms.items()}

        def seen(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                rows = output.flatten(0, -2)
                if len(rows) > ROWS:
                    rows = rows[torch.randint(len(rows), (ROWS,), generator=generator).to(rows.device)]
                of_norm[name].add(rows)

            return hook

        hooks = [model.get_submodule(name).register_forward_hook(seen(name)) for name in of_norm]
        try:
            with eval_mode(model):
                for images in batches:
                    model(images.clone())
        finally:
            for hook in hooks:
                hook.remove()
        streams: dict[Atom, list[Moments]] = {}
        for name, moments in of_norm.items():
            streams.setdefault(self.found.stream_norms[name].atoms()[0], []).append(moments)
        return streams

    @torch.no_grad()
    def with_layer_norms(self, student: nn.Module, teacher: nn.Module, kept: Mapping[Atom, Tensor]) -> nn.Module:
        """Put layer norms in the place of norms of streams again; the student computes the same.

        Args:
            student: The model, narrowed; changed in place.
            teacher: With the layer norms that there were.
            kept: Channels that the student has, of each stream that was narrowed.
        """
        for atom in self.turns:
            onto = self._basis_of(atom, kept)
            width = len(onto)
            gain = math.sqrt(atom.size / width)
            tensors = dict(tensors_of(student))
            for name, dim, side in list(_sides(student, self.found, atom)):
                if side in {"reads", "writes"}:
                    _multiply(tensors[name], dim, onto * gain if side == "reads" else onto)
        present = dict(student.named_modules())
        for name in self.found.stream_norms.keys() & present.keys():
            norm = copy.deepcopy(teacher.get_submodule(name))
            assert isinstance(norm, nn.LayerNorm)
            width = len(present[name].weight)
            norm.normalized_shape = (width,)
            for key, value in (("weight", 1.0), ("bias", 0.0)):
                old = getattr(norm, key)
                setattr(norm, key, nn.Parameter(torch.full((width,), value).to(old), requires_grad=old.requires_grad))
            put_module(student, name, norm.train(student.training))
        return student

    def _basis_of(self, atom: Atom, kept: Mapping[Atom, Tensor]) -> Tensor:
        """Return what takes the channels that are left to those of a plain layer norm's stream, orthogonal."""
        if atom not in kept:
            return self.turns[atom].T
        return reflection(len(kept[atom]))

    def projection(self, atom: Atom, kept: Mapping[Atom, Tensor]) -> Tensor:
        """Return what takes the teacher's stream to the student's, (student's width, teacher's width), float64."""
        left = self.turns[atom][kept[atom]] if atom in kept else self.turns[atom]
        return self._basis_of(atom, kept) @ left @ centring(atom.size)
