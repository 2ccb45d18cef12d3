"""Two chains of blocks -> the same number of blocks with maps of matching size at every cut, or a clear refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile

from torch import Tensor

from netgraft.blocks import BlockChain, Cut
from netgraft.errors import RequestError
from netgraft.layers import structure


@dataclass(frozen=True, eq=False)
class Pairing:
    """A teacher and a student cut at the same places, and how the student starts.

    Attributes:
        teacher: Chain of L blocks.
        student: Chain of L blocks; its cuts have the sizes of the teacher's, its widths are its own.
        inherited: How many blocks at the front of the student are the teacher's own, and stay frozen.
        init: How the other blocks start: ``random`` (as they were built) or ``slice``.
        selections: For each cut, which of the teacher's channels the student starts with, as indices
            (student width,); empty unless ``init`` is ``slice``.
    """

    teacher: BlockChain
    student: BlockChain
    inherited: int = 0
    init: str = "random"
    selections: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.teacher)

    @property
    def widths(self) -> list[tuple[int, int]]:
        """The teacher's and the student's channels at each cut."""
        return [
            (mine.channels, theirs.channels) for mine, theirs in zip(self.teacher.cuts, self.student.cuts, strict=True)
        ]

    def __str__(self) -> str:
        lines = []
        for number, (mine, theirs) in enumerate(zip(self.teacher.names, self.student.names, strict=True)):
            shapes = ""
            if number < len(self) - 1:
                shapes = f"  {self.teacher.cuts[number]} / {self.student.cuts[number]}"
            mark = "  inherited" if number < self.inherited else ""
            lines.append(f"block {number + 1}: {mine} / {theirs}{shapes}{mark}")
        return "\n".join(lines)


def _common_cuts(teacher: Sequence[Cut], student: Sequence[Cut]) -> list[tuple[int, int]]:
    """Longest common subsequence of map sizes; among equals the last cuts of a size, where a stage ends."""

    def fits(mine: Cut, theirs: Cut) -> bool:
        return mine.layout == theirs.layout == "NCHW" and mine.size == theirs.size

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


def _table(title: str, chain: BlockChain) -> str:
    return f"{title}: " + ", ".join(f"{cut.name} {cut}" for cut in chain.cuts)


def pair(teacher: BlockChain, student: BlockChain) -> Pairing:
    """Merge blocks until both chains are cut at maps of the same sizes.

    Raises:
        RequestError: No two cuts have maps of the same height and width; names the cuts of both.
    """
    common = _common_cuts(teacher.cuts, student.cuts)
    if not common:
        raise RequestError(
            "the blocks can't be paired: no cut of the teacher has a map of the same size as one of the student\n"
            f"  {_table('teacher', teacher)}\n  {_table('student', student)}\n"
            "choose a student with the teacher's resolutions"
        )
    return Pairing(teacher.merge([mine for mine, _ in common]), student.merge([theirs for _, theirs in common]))


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
        raise ValueError("blocks are merged before the student starts from any")
    kept = _even_cuts(costs, blocks)
    return replace(pairing, teacher=pairing.teacher.merge(kept), student=pairing.student.merge(kept))


def _even_cuts(costs: Sequence[int], parts: int) -> tuple[int, ...]:
    """Numbers of the cuts between ``parts`` runs of ``costs`` whose sums have the least sum of squares."""
    sums = list(accumulate(costs))
    # for each end: the least sum of squares of the runs up to it, and the cuts between them
    best: dict[int, tuple[int, tuple[int, ...]]] = {end: (total**2, ()) for end, total in enumerate(sums)}
    for _ in range(parts - 1):
        best = {
            end: min((best[cut][0] + (sums[end] - sums[cut]) ** 2, (*best[cut][1], cut)) for cut in best if cut < end)
            for end in [*best][1:]
        }
    return best[len(sums) - 1][1]


def inherit(pairing: Pairing) -> Pairing:
    """Copy the teacher's weights into the leading blocks of the student that are built exactly alike.

    Raises:
        RequestError: The student is built like the teacher from front to end, so nothing would be left to train.
    """
    pairs = zip(pairing.teacher, pairing.student, strict=True)
    alike = list(takewhile(lambda both: structure(both[0]) == structure(both[1]), pairs))
    if len(alike) == len(pairing):
        raise RequestError(
            "the student is built exactly like the teacher, so every block would be inherited and nothing trained; "
            "choose a smaller student or inherit='none'"
        )
    for mine, theirs in alike:
        weights = zip(theirs.state_dict(), mine.state_dict().values(), strict=True)
        theirs.load_state_dict(dict(weights))
    return replace(pairing, inherited=len(alike))
