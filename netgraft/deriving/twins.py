"""The widths of a narrower twin: a model that is built like the teacher, layer by layer, with fewer channels."""

from __future__ import annotations

from torch import nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.axes import Atom
from netgraft.errors import RequestError


def widths_like(anatomy: Anatomy, student: nn.Module) -> dict[Atom, int]:
    """Return the widths at which the narrowed teacher has the sizes of ``student``.

    Args:
        anatomy: Of the teacher.
        student: Of the same constructor, with other arguments.

    Raises:
        RequestError: It has other layers, or sizes that narrowing the teacher doesn't lead to.
    """
    tensors = dict([*student.named_parameters(), *student.named_buffers()])
    found = anatomy.found.tensors
    if tensors.keys() != found.keys():
        raise _no_twin(f"{min(tensors.keys() ^ found.keys())} is in one of them alone")
    widths: dict[Atom, int] = {}
    free = {place.atom for place in anatomy.places}
    for name, axes in found.items():
        if len(axes) != tensors[name].dim():
            raise _no_twin(f"{name} has {tensors[name].dim()} dimensions, not {len(axes)}")
        for axis, size in zip(axes, tensors[name].shape, strict=True):
            atoms = axis.atoms()
            if len(atoms) == 1 and atoms[0] in free:
                widths.setdefault(atoms[0], min(size, atoms[0].size))
    for name, axes in found.items():
        expected = tuple(axis.kept_size(lambda atom: widths.get(atom, atom.size)) for axis in axes)
        if expected != tuple(tensors[name].shape):
            raise _no_twin(f"{name} is {tuple(tensors[name].shape)} where {_sizes(expected)} would fit")
    return {atom: widths.get(atom, atom.size) for atom in free}


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _no_twin(reason: str) -> RequestError:
    return RequestError(
        "init='solve' needs a student that is built like the teacher layer by layer, only narrower; "
        f"{reason}; use init='random', or leave the student out and have one derived"
    )
