"""What the dimensions of tensors are made of: atoms, in products and sums, that are found to be one or kept apart.

A dimension of a tensor is an *axis*: a sum of segments one behind the other (what ``cat`` makes), each a product of
atoms in row-major order (what ``reshape`` makes). An atom is a set of indices that can only be selected from as one:
the channels of a residual stream are one atom, however many layers write and read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch
from torch import Tensor

_numbers = count()


@dataclass(eq=False)
class Atom:
    """A set of indices that is narrowed as a whole or not at all.

    Attributes:
        size: How many indices.
        fixed: Why it can't be narrowed; empty if it can.
        number: In the order in which atoms were made.
    """

    size: int
    fixed: str = ""
    number: int = field(default_factory=lambda: next(_numbers))
    _alias: Atom | None = None
    _factors: tuple[Atom, ...] = ()
    _parts: tuple[Atom, ...] = ()

    def root(self) -> Atom:
        """Return the atom that this one was found to be."""
        return self if self._alias is None else self._alias.root()

    def fix(self, reason: str) -> None:
        """Say that nothing can be selected from this atom, nor from what it is made of."""
        atom = self.root()
        atom.fixed = atom.fixed or reason
        for inner in (*atom._factors, *atom._parts):
            inner.fix(reason)

    def into_factors(self, first: int) -> None:
        """Take it as a product of ``first`` times the rest."""
        self._factors = (Atom(first, self.fixed), Atom(self.size // first, self.fixed))

    def into_parts(self, first: int) -> None:
        """Take it as a sum of ``first`` and the rest."""
        self._parts = (Atom(first, self.fixed), Atom(self.size - first, self.fixed))


Segment = tuple[Atom, ...]
"""A product of atoms in row-major order; an empty one has one index."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of a tensor.

    Attributes:
        written: Its segments as they were when the axis was made; ``segments`` are what they became since.
    """

    written: tuple[Segment, ...]

    @classmethod
    def of(cls, size: int, fixed: str = "") -> Axis:
        """Return a new dimension, of one atom."""
        return cls(((Atom(size, fixed),),)) if size != 1 else ONE

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments in atoms that stand for themselves."""
        return tuple(resolved for segment in self.written for resolved in _resolved(segment))

    @property
    def size(self) -> int:
        """How many indices."""
        return sum(_size(segment) for segment in self.written)

    def atoms(self) -> list[Atom]:
        """Return its atoms in order, each as often as it occurs."""
        return [atom for segment in self.segments for atom in segment]

    def fix(self, reason: str) -> None:
        """Say that nothing can be selected from it."""
        for atom in self.atoms():
            atom.fix(reason)

    def kept_size(self, kept: Callable[[Atom], int]) -> int:
        """Return how many indices are left.

        Args:
            kept: How many of an atom are.
        """
        return sum(math.prod(kept(atom) for atom in segment) for segment in self.segments)

    def indices(self, kept: Mapping[Atom, Tensor]) -> Tensor:
        """Return which indices are left, ascending where those of the atoms are.

        Args:
            kept: Of each atom that is narrowed, the indices (n,) that are left.
        """
        parts, offset = [], 0
        for segment in self.segments:
            flat = torch.zeros(1, dtype=torch.long)
            for atom in segment:
                of_atom = kept[atom] if atom in kept else torch.arange(atom.size)
                flat = (flat[:, None] * atom.size + of_atom).flatten()
            parts.append(flat + offset)
            offset += _size(segment)
        return torch.cat(parts)

    def positions_of(self, atom: Atom) -> Tensor:
        """Return where each index of an atom stands in this axis: (size of the atom, how often each)."""
        owner = []
        for segment in self.segments:
            flat = torch.full((1,), -1)
            for each in segment:
                inside = torch.arange(each.size) if each is atom else torch.full((each.size,), -1)
                flat = torch.maximum(flat[:, None], inside).flatten()
            owner.append(flat)
        whole = torch.cat(owner)
        return whole.argsort(stable=True)[int((whole < 0).sum()) :].reshape(atom.size, -1)


ONE = Axis(((),))
"""A dimension of one index, which is broadcast."""


def _size(segment: Segment) -> int:
    return math.prod(atom.size for atom in segment)


def _resolved(segment: Segment) -> Iterator[Segment]:
    atoms: list[Atom] = []
    pending = [atom.root() for atom in reversed(segment)]
    while pending:
        atom = pending.pop().root()
        if atom.size == 1:
            continue
        if atom._factors:
            pending.extend(reversed(atom._factors))
        elif atom._parts and not atoms:
            rest = tuple(reversed(pending))
            for part in atom._parts:
                yield from _resolved((part, *rest))
            return
        else:
            if atom._parts:
                # a sum inside a product is no sum of products of neighbours
                atom.fix("its parts are interleaved with other channels")
            atoms.append(atom)
    yield tuple(atoms)


def unify(first: Axis, second: Axis) -> None:
    """Say that two axes have the same indices: whatever is selected from the one is selected from the other.

    Where they are made of parts that can't be matched, both are fixed.

    Raises:
        ValueError: They are of different sizes.
    """
    if first.size != second.size:
        raise ValueError(f"axes of {first.size} and {second.size} indices can't be the same")
    while first.segments != second.segments:
        step = _first_difference(first.segments, second.segments)
        if step is None:
            for axis in (first, second):
                axis.fix("channels meet that are made of other parts")
            return
        step()


def _first_difference(first: tuple[Segment, ...], second: tuple[Segment, ...]) -> Callable[[], None] | None:
    """Return what makes two axes a little more alike; None where nothing does."""
    for one, other in zip(first, second, strict=False):
        if one == other:
            continue
        if _size(one) == _size(other):
            return _unify_products(one, other)
        larger, size = (one, _size(other)) if _size(one) > _size(other) else (other, _size(one))
        if len(larger) != 1:
            return None
        return None if larger[0]._parts else partial(larger[0].into_parts, size)
    return None


def _unify_products(one: Segment, other: Segment) -> Callable[[], None] | None:
    for a, b in zip(one, other, strict=False):
        if a is b:
            continue
        if a.size == b.size:
            return None if a._parts or b._parts else partial(_merge, a, b)
        larger, size = (a, b.size) if a.size > b.size else (b, a.size)
        return None if larger.size % size or larger._parts else partial(larger.into_factors, size)
    return None


def _merge(a: Atom, b: Atom) -> None:
    older, newer = sorted((a, b), key=lambda atom: atom.number)
    reason = older.fixed or newer.fixed
    if reason:
        older.fix(reason)
    newer._alias = older


def merged(axes: Sequence[Axis]) -> Axis:
    """Return the one axis that several become when they are flattened, the first one outermost."""
    axes = [axis for axis in axes if axis.size != 1]
    if not axes:
        return ONE
    if any(len(axis.segments) > 1 for axis in axes[1:]):
        for axis in axes:
            axis.fix("concatenated channels are flattened behind others")
        return Axis.of(math.prod(axis.size for axis in axes), "concatenated channels are flattened behind others")
    inner = tuple(atom for axis in axes[1:] for atom in axis.segments[0])
    return Axis(tuple((*segment, *inner) for segment in axes[0].segments))


def divided(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Return the axes that one becomes when it is reshaped, the first one outermost.

    Args:
        axis: Of as many indices as all sizes make together.
        sizes: Of the new axes.
    """
    real = [size for size in sizes if size != 1]
    axes = _divided(axis, real) if real else []
    pending = iter(axes)
    return [ONE if size == 1 else next(pending) for size in sizes]


def _divided(axis: Axis, sizes: list[int]) -> list[Axis]:
    if len(sizes) == 1:
        return [axis]
    segments = axis.segments
    if len(segments) > 1:
        # pieces of one size that are stacked: what is selected from one is selected from all
        pieces = [Axis(group) for group in _grouped(segments, axis.size // sizes[0])]
        if len(pieces) != sizes[0]:
            axis.fix("concatenated channels are reshaped")
            return [Axis.of(size, "concatenated channels are reshaped") for size in sizes]
        for piece in pieces[1:]:
            unify(pieces[0], piece)
        return [Axis.of(sizes[0], "pieces that are stacked"), *_divided(pieces[0], sizes[1:])]
    taken: list[Atom] = []
    while True:
        segment = Axis((axis.segments[0],)).segments[0]
        size = 1
        for position, atom in enumerate(segment):
            if size == sizes[0]:
                return [Axis((tuple(taken),)), *_divided(Axis((segment[position:],)), sizes[1:])]
            missing = sizes[0] // size if sizes[0] % size == 0 else 0
            if missing and atom.size > missing and atom.size % missing == 0 and not atom._parts:
                atom.into_factors(missing)
                break
            if not missing or missing % atom.size or atom._parts:
                axis.fix("channels are reshaped across each other")
                return [Axis.of(size, "channels are reshaped across each other") for size in sizes]
            taken.append(atom)
            size *= atom.size
        taken = []


def _grouped(segments: Iterable[Segment], size: int) -> list[tuple[Segment, ...]]:
    """Gather neighbouring segments to groups of one size; none where they don't come out even."""
    groups: list[tuple[Segment, ...]] = []
    open_group: list[Segment] = []
    for segment in segments:
        open_group.append(segment)
        total = sum(_size(each) for each in open_group)
        if total > size:
            return []
        if total == size:
            groups.append(tuple(open_group))
            open_group = []
    return groups


def concatenated(axes: Sequence[Axis]) -> Axis:
    """Return the axis that several make one behind the other."""
    return Axis(tuple(segment for axis in axes for segment in axis.segments))


def cut_out(axis: Axis, start: int, stop: int) -> Axis:
    """Return a stretch of an axis: whole segments, or a part of a segment that is one atom.

    Args:
        axis: Of which the stretch is one.
        start: Of the stretch, an index.
        stop: Behind the stretch.
    """
    while True:
        chosen, offset = [], 0
        for segment in axis.segments:
            end = offset + _size(segment)
            if start <= offset and end <= stop:
                chosen.append(segment)
            elif start < end and offset < stop:
                at = start if offset < start else stop
                if len(segment) == 1 and not segment[0]._parts:
                    segment[0].into_parts(at - offset)
                elif segment and (at - offset) % (_size(segment) // segment[0].size) == 0 and not segment[0]._parts:
                    segment[0].into_parts((at - offset) // (_size(segment) // segment[0].size))
                else:
                    axis.fix("a part of these channels is cut out")
                    return Axis.of(stop - start, "a part of other channels")
                break
            offset = end
        else:
            return Axis(tuple(chosen))
