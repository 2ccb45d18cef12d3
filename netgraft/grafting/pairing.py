"""Two chains of blocks -> the same number of blocks, cut where a map crosses in both, or a clear refusal.

Where maps shrink on the way, their sizes say which cuts correspond. Where one chain works on a single size from front
to end, the share of the work that is done says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, takewhile
from math import prod

from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.grafting.layout_conversion import describe_form, form_of, holds_map
from netgraft.modules import structure
from netgraft.splitting.balance import balanced_partition
from netgraft.splitting.chain import BlockChain, Cut

FAR = 0.1
"""Error of logits from which on a solved start is far: it is sought in rounds too, and learns at full rates."""


@dataclass(frozen=True, eq=False)
class Pairing:
    """A teacher and a student cut at corresponding points, and how the student starts.

    Attributes:
        teacher: Chain of L blocks.
        student: Chain of L blocks; maps cross its cuts as they do the teacher's, in widths and forms of its own.
        inherited: How many blocks at the front of the student are the teacher's own, and stay frozen.
        init: How the other blocks start: ``random`` (as they were built), ``kept`` (with weights that the student came
            with), ``slice`` or ``solve``.
        selections: For each cut, which of the teacher's channels the student starts with, as indices
            (student width,), or as a matrix (student width, teacher width) where the student is in another basis;
            empty if ``init`` is ``random`` or ``kept``.
        left_out: The teacher's residual blocks that the student does without, where it starts as the teacher's.
        start_error: How far its logits are from the teacher's where its start was solved: mean squared difference in
            parts of their variance.
        fresh: Modules that start at random in a student that is kept, such as a head for other classes.
    """

    teacher: BlockChain
    student: BlockChain
    inherited: int = 0
    init: str = "random"
    selections: tuple[Tensor, ...] = ()
    left_out: tuple[str, ...] = ()
    start_error: float = 0.0
    fresh: tuple[nn.Module, ...] = ()

    def __len__(self) -> int:
        return len(self.teacher)

    @property
    def fits_together(self) -> bool:
        """Whether the student's blocks follow one another without adapters: in bases of its own, or with weights."""
        return self.init == "kept" or any(start.is_floating_point() for start in self.selections)

    @property
    def starts_close(self) -> bool:
        """Whether the student starts with all layers made of the teacher's, or knows something, and learns slowly."""
        solved = self.init == "solve" and self.start_error < FAR
        return solved or self.init == "kept" or (self.init == "slice" and not self.left_out)

    def fresh_in(self, trainable: nn.Module) -> tuple[nn.Module, ...]:
        """Return those of the ``fresh`` modules whose parameters are all in ``trainable``."""
        inside = set(trainable.parameters())
        return tuple(module for module in self.fresh if inside.issuperset(module.parameters()))

    @property
    def widths(self) -> list[tuple[int, int]]:
        """The teacher's and the student's channels at each cut."""
        cuts = zip(self.teacher.cuts, self.student.cuts, strict=True)
        return [(teacher.channels, student.channels) for teacher, student in cuts]

    @property
    def conversions(self) -> list[str]:
        """For each cut the forms that its adapters convert between; empty where teacher and student have the same."""
        cuts = zip(self.teacher.cuts, self.student.cuts, strict=True)
        forms = [(form_of(teacher), form_of(student)) for teacher, student in cuts]
        return [
            "" if teacher == student else f"{describe_form(teacher)} / {describe_form(student)}"
            for teacher, student in forms
        ]

    def __str__(self) -> str:
        lines = []
        conversions = self.conversions
        names = zip(self.teacher.names, self.student.names, strict=True)
        for number, (teacher, student) in enumerate(names):
            shapes = ""
            if number < len(self) - 1:
                shapes = f"  {self.teacher.cuts[number]} / {self.student.cuts[number]}"
                shapes += f"  adapters convert {conversions[number]}" if conversions[number] else ""
            mark = "  inherited" if number < self.inherited else ""
            lines.append(f"block {number + 1}: {teacher} / {student}{shapes}{mark}")
        lines += [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        return "\n".join(lines)


_CLOSE = 1.3
"""How many times a size may be another that is taken for the same stage's, rounded in another way; stages halve it."""


def _corresponding(teacher: BlockChain, student: BlockChain) -> list[tuple[int, int]]:
    """Choose the cuts that correspond, by their numbers: of equal size, or close; where sizes can't tell, by depth."""
    usable = [cut for chain in (teacher, student) for cut in chain.cuts if holds_map(cut)]
    # between convolutional networks sizes have the last word
    convolutional = all(cut.layout == "NCHW" for cut in usable)
    of_one_size = len({cut.size for cut in usable}) == 1
    if not convolutional and not of_one_size and (_is_isotropic(teacher) or _is_isotropic(student)):
        return _of_equal_depth(teacher, student)
    return matching_cuts(teacher.cuts, student.cuts) or matching_cuts(teacher.cuts, student.cuts, within=_CLOSE)


def _is_isotropic(chain: BlockChain) -> bool:
    sizes = [cut.size for cut in chain.cuts if holds_map(cut)]
    return len(sizes) > 1 and len(set(sizes)) == 1


def _of_equal_depth(teacher: BlockChain, student: BlockChain) -> list[tuple[int, int]]:
    """As many pairs of cuts, in order, as there can be, with the least sum of differences in depth."""
    teacher_depths, student_depths = _depths(teacher), _depths(student)

    @cache
    def best(i: int, j: int, count: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        """Choose ``count`` pairs among the first ``i`` and ``j`` cuts."""
        if not count:
            return 0.0, ()
        if min(i, j) < count:
            return float("inf"), ()
        cost, pairs = best(i - 1, j - 1, count - 1)
        (number, depth), (counterpart, its_depth) = teacher_depths[i - 1], student_depths[j - 1]
        taken = cost + abs(depth - its_depth), (*pairs, (number, counterpart))
        return min(taken, best(i - 1, j, count), best(i, j - 1, count))

    rows, columns = len(teacher_depths), len(student_depths)
    return list(best(rows, columns, min(rows, columns))[1])


def _depths(chain: BlockChain) -> list[tuple[int, float]]:
    """Numbers of the cuts where a map crosses, and the share of the chain's products that is computed in front of each.

    A weight is taken to be used at every position of the map that its block makes, which leaves attention out. The last
    block makes none: it pools first, except where it holds layers like all the others.
    """
    positions = [prod(cut.size) if holds_map(cut) else 1 for cut in chain.cuts]
    positions.append(positions[-1] if _is_isotropic(chain) else 1)
    costs = [_weights(block) * count for block, count in zip(chain, positions, strict=True)]
    done = list(accumulate(costs))
    return [(number, done[number] / max(done[-1], 1)) for number, cut in enumerate(chain.cuts) if holds_map(cut)]


def _weights(block: nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters() if parameter.dim() > 1)


def matching_cuts(teacher: Sequence[Cut], student: Sequence[Cut], *, within: float = 1.0) -> list[tuple[int, int]]:
    """Pair cuts of the same map size, in whatever layout, in order, as many as can be.

    Where all cuts of both are alike, as in vision transformers, those at the same share of the blocks. Otherwise among
    equals the last cuts of a size, where a stage ends.

    Args:
        teacher: The cuts of one chain.
        student: Of the other.
        within: How many times a height or width may be the other.

    Returns:
        Numbers of the teacher's and the student's cut of each pair.
    """

    def fits(first: Cut, second: Cut) -> bool:
        if not (holds_map(first) and holds_map(second)):
            return False
        return all(max(sides) <= within * min(sides) for sides in zip(first.size, second.size, strict=True))

    if teacher and student and all(fits(teacher[0], cut) for cut in [*teacher, *student]):
        return _by_number(len(teacher) + 1, len(student) + 1)
    rows, columns = len(teacher), len(student)
    # longest[i][j]: of the first i cuts of the teacher and the first j of the student
    longest = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            matched = longest[i - 1][j - 1] + 1 if fits(teacher[i - 1], student[j - 1]) else 0
            longest[i][j] = max(longest[i - 1][j], longest[i][j - 1], matched)
    pairs = []
    i, j = rows, columns
    while longest[i][j]:
        last = [
            (a, b)
            for a in range(1, i + 1)
            for b in range(1, j + 1)
            if fits(teacher[a - 1], student[b - 1]) and longest[a - 1][b - 1] + 1 == longest[i][j]
        ]
        a, b = max(last, key=sum)
        pairs.append((a - 1, b - 1))
        i, j = a - 1, b - 1
    return pairs[::-1]


def _by_number(teacher: int, student: int) -> list[tuple[int, int]]:
    """Cuts between as many blocks as the shorter of two chains has, spread evenly over the longer."""
    blocks = min(teacher, student)
    return [(-(-number * teacher // blocks) - 1, -(-number * student // blocks) - 1) for number in range(1, blocks)]


def _table(title: str, chain: BlockChain) -> str:
    shown = (str(cut) if cut.layout in {"NCHW", "tuple"} else f"{cut} ({_kind(cut)})" for cut in chain.cuts)
    return f"{title}: " + ", ".join(f"{cut.name} {shape}" for cut, shape in zip(chain.cuts, shown, strict=True))


def _kind(cut: Cut) -> str:
    return describe_form(form_of(cut)) if holds_map(cut) else cut.layout


def pair(teacher: BlockChain, student: BlockChain) -> Pairing:
    """Merge blocks until both chains are cut where the other one is.

    Cuts correspond whose maps have the same size, in whatever layout, or else nearly the same. Where one chain has a
    single size, and the other has others, cuts at the same depth do, except between two convolutional networks.

    Args:
        teacher: Chain of a trained classifier.
        student: Chain of another, for images of the same size.

    Returns:
        Both chains with as many blocks; they share the modules of the chains that came in. The student starts as it
        was built.

    Raises:
        RequestError: No two cuts correspond; names the cuts of both.

    Examples:
        >>> import timm, torch
        >>> import netgraft.zoo
        >>> from netgraft import split
        >>> probe = torch.randn(2, 1, 8, 8)
        >>> names = ("digits_vgg7_bn", "digits_vgg7_bn_half")
        >>> teacher, student = (split(timm.create_model(name), probe=probe) for name in names)
        >>> print(pair(teacher, student))
        block 1: features.5 / features.5  32x4x4 / 32x4x4
        block 2: features.12 / features.12  64x2x2 / 32x2x2
        block 3: features.19 / features.19  128x1x1 / 64x1x1
        block 4: head / head
    """
    common = _corresponding(teacher, student)
    if not common:
        raise RequestError(
            "the blocks can't be paired: no cut of the teacher has a map of the same size as one of the student\n"
            f"  {_table('teacher', teacher)}\n  {_table('student', student)}\n"
            f"{_advice(teacher, student)}"
        )
    kept, student_kept = zip(*common, strict=True)
    return Pairing(teacher.merge(kept), student.merge(student_kept))


def _advice(teacher: BlockChain, student: BlockChain) -> str:
    for which, chain in (("teacher", teacher), ("student", student)):
        if not any(map(holds_map, chain.cuts)):
            return f"no single map crosses any cut of the {which}, so nothing can be grafted; choose another {which}"
    return "choose a student with the teacher's resolutions"


def merge_to(pairing: Pairing, blocks: int, *, costs: Sequence[int]) -> Pairing:
    """Merge neighbouring pairs until ``blocks`` are left, whose costs are as even as can be.

    Comes before inheritance and slicing, which look at whole blocks.

    Args:
        pairing: Of at least ``blocks`` pairs.
        blocks: How many are to be left, at least 2.
        costs: Of each pair, of any unit.

    Returns:
        The pairing with the least sum of squared costs; among equals with the first cuts.

    Raises:
        RequestError: There are not so many pairs, or fewer than two are asked for.
    """
    if not 2 <= blocks <= len(pairing):
        raise RequestError(
            f"the models pair in {len(pairing)} blocks, which can be merged to between 2 and {len(pairing)}, "
            f"not to {blocks}; choose another number of blocks"
        )
    if pairing.inherited or pairing.selections:
        raise ValueError("blocks are merged before the student inherits or is sliced; merge the pairing first")
    kept = balanced_partition(costs, blocks)
    return replace(pairing, teacher=pairing.teacher.merge(kept), student=pairing.student.merge(kept))


def without_cuts(pairing: Pairing, unwanted: Sequence[bool]) -> Pairing:
    """Merge neighbouring pairs of blocks.

    Args:
        pairing: Teacher and student.
        unwanted: Of each cut, whether the blocks on both sides of it become one.
    """
    kept = [number for number, each in enumerate(unwanted) if not each]
    if len(kept) == len(unwanted):
        return pairing
    return replace(
        pairing,
        teacher=pairing.teacher.merge(kept),
        student=pairing.student.merge(kept),
        inherited=sum(number < pairing.inherited for number in kept),
    )


def inherit(pairing: Pairing) -> Pairing:
    """Copy the teacher's weights into the leading blocks of the student that are built, and cut, exactly alike.

    Args:
        pairing: The student's blocks are changed in place.

    Returns:
        The pairing with the number of inherited blocks.

    Raises:
        RequestError: The student is built like the teacher from front to end, so nothing would be left to train.
    """
    pairs = zip(pairing.teacher, pairing.student, [*pairing.conversions, ""], strict=True)
    alike = list(takewhile(lambda one: structure(one[0]) == structure(one[1]) and not one[2], pairs))
    if len(alike) == len(pairing):
        raise RequestError(
            "the student is built exactly like the teacher, so every block would be inherited and nothing trained; "
            "choose a smaller student or inherit='none'"
        )
    for teacher, student, _ in alike:
        weights = zip(student.state_dict(), teacher.state_dict().values(), strict=True)
        student.load_state_dict(dict(weights))
    return replace(pairing, inherited=len(alike))
