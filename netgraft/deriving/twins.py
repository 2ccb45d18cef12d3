"""The widths of a smaller twin: a model that is built like the teacher, with fewer channels and fewer blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.axes import Atom, Axis
from netgraft.deriving.following import Axes
from netgraft.deriving.narrowing import atoms_inside
from netgraft.deriving.places import Block
from netgraft.deriving.sizes import HEADS, WIDTHS_OF_A_HEAD
from netgraft.errors import RequestError


def anatomy_of_wider_twin(teacher: nn.Module, student: nn.Module, input_size: Sequence[int]) -> Anatomy | None:
    """Take a teacher apart if narrowing it, with all of its blocks, leads to the student's sizes; else return None.

    Args:
        teacher: A classifier, in any mode.
        student: Another. One of the teacher's own sizes is no narrower twin.
        input_size: Channels, height and width of images.
    """
    try:
        anatomy = Anatomy.on_noise(teacher, input_size)
    except RequestError:
        return None
    return anatomy if narrows_to(anatomy, student) else None


def narrows_to(anatomy: Anatomy, student: nn.Module) -> bool:
    """Whether narrowing the teacher, with all of its blocks, leads to the student's sizes.

    Args:
        anatomy: Of the teacher.
        student: Only its sizes count. One of the teacher's own sizes is no narrower twin.
    """
    try:
        widths = widths_like(anatomy, student)
    except RequestError:
        return False
    narrower = any(width < atom.size for atom, width in widths.items())
    return narrower and all(widths[block.atom] for block in anatomy.blocks)


def widths_like(anatomy: Anatomy, student: nn.Module) -> dict[Atom, int]:
    """Return the widths at which the narrowed teacher has the sizes of ``student``.

    Args:
        anatomy: Of the teacher.
        student: Of the same constructor, with other arguments.

    Returns:
        Of each place; of each block 1, or 0 where the student has none.

    Raises:
        RequestError: It has other layers, or sizes that narrowing the teacher doesn't lead to.
    """
    tensors = dict([*student.named_parameters(), *student.named_buffers()])
    absent = {block for block in anatomy.blocks if not any(name.startswith(f"{block.name}.") for name in tensors)}
    missing = _missing_with(absent, anatomy, student)
    found = {name: axes for name, axes in anatomy.found.tensors.items() if name not in missing}
    if tensors.keys() != found.keys():
        raise _no_twin(f"{min(tensors.keys() ^ found.keys())} is in one of them alone")
    for name, axes in found.items():
        if len(axes) != tensors[name].dim():
            raise _no_twin(f"{name} has {tensors[name].dim()} dimensions, not {len(axes)}")
    widths = _solved(anatomy, student, found, tensors)
    for name, axes in found.items():
        expected = tuple(axis.kept_size(lambda atom: widths.get(atom, atom.size)) for axis in axes)
        if expected != tuple(tensors[name].shape):
            raise _no_twin(f"{name} is {tuple(tensors[name].shape)} where {_sizes(expected)} would fit")
    present = {block.atom: int(block not in absent) for block in anatomy.blocks}
    return {place.atom: widths.get(place.atom, place.width) for place in anatomy.places} | present


def _missing_with(absent: Collection[Block], anatomy: Anatomy, student: nn.Module) -> set[str]:
    """Return the teacher's tensors that go along with blocks: those of modules of which nothing else is left.

    A transformer's block whose branches are both left out has norms that nothing reads.
    """
    known = {name for name, _ in student.named_modules()}
    gone = {block.name for block in absent}
    missing = set()
    for name in anatomy.found.tensors:
        parts = name.split(".")
        ancestors = (".".join(parts[:end]) for end in range(1, len(parts)))
        outermost = next((ancestor for ancestor in ancestors if ancestor not in known), None)
        inside = [product for product in anatomy.found.products if outermost in product.inside]
        if outermost is not None and inside and all(gone & set(product.inside) for product in inside):
            missing.add(name)
    return missing


def _solved(
    anatomy: Anatomy, student: nn.Module, found: Mapping[str, Axes], tensors: Mapping[str, Tensor]
) -> dict[Atom, int]:
    """Return the widths that the sizes of axes lead to: each from an axis of which all else is known."""
    free = {place.atom for place in anatomy.places}
    groups = {name: layer.groups for name, layer in student.named_modules() if isinstance(layer, nn.Conv2d)}
    sizes = [
        (each.groups, groups[each.layer]) for each in anatomy.found.products if each.groups and each.layer in groups
    ]
    for name, axes in found.items():
        sizes += zip(axes, tensors[name].shape, strict=True)
    # a product of heads and of their width says neither of them
    sizes += [(Axis(((atom,),)), count) for atom, count in _said_by_heads(anatomy, student) if atom in free]
    widths: dict[Atom, int] = {}
    before = -1
    while len(widths) > before:
        before = len(widths)
        for axis, size in sizes:
            unknown = {atom for atom in axis.atoms() if atom in free and atom not in widths}
            if len(unknown) == 1:
                (atom,) = unknown
                widths[atom] = _width(axis, size, atom, widths)
    return widths


def _said_by_heads(anatomy: Anatomy, student: nn.Module) -> list[tuple[Atom, int]]:
    """Return how many heads attention says that it has, and how wide they are."""
    present = dict(student.named_modules())
    said = []
    for name, module in anatomy.model.named_modules():
        if name in present:
            atoms = atoms_inside(anatomy.found, name)
            for keys, among in (
                (HEADS, atoms - anatomy.found.widths),
                (WIDTHS_OF_A_HEAD, atoms & anatomy.found.widths),
            ):
                for key in keys:
                    teachers, students = (vars(each).get(key) for each in (module, present[name]))
                    if isinstance(students, int):
                        said += [(atom, students) for atom in among if atom.size == teachers]
    return said


def _width(axis: Axis, size: int, atom: Atom, widths: Mapping[Atom, int]) -> int:
    """Return the width of ``atom`` at which ``axis`` has ``size`` indices; the teacher's where there is none."""

    def size_at(width: int) -> int:
        return axis.kept_size(lambda each: width if each is atom else widths.get(each, each.size))

    width, rest = divmod(size - size_at(0), size_at(1) - size_at(0))
    return width if rest == 0 and 0 < width <= atom.size else atom.size


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _no_twin(reason: str) -> RequestError:
    return RequestError(
        "init='solve' needs a student that is built like the teacher layer by layer, only narrower or with fewer "
        "residual blocks; "
        f"{reason}; use init='random', or leave the student out and have one derived"
    )
