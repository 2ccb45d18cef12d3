"""What another width of a place changes: only the parts of a cost that depend on it are added up again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from netgraft.deriving.axes import Atom
from netgraft.deriving.costs import Cost, Part, Widths


class Moves:
    """Widths of all places, and what each other width of one or two of them would change.

    Args:
        atoms: The places.
        widths: That each can have, ascending.
        costs: That change.
        chosen: Which of its widths each place has at first, by number.

    Attributes:
        chosen: Which of its widths each place has, by number.
        changes: What each width of a place would change where it is the only one that does, (costs, widths) of each.
    """

    def __init__(
        self, atoms: Sequence[Atom], widths: Sequence[Sequence[int]], costs: Sequence[Cost], chosen: Sequence[int]
    ) -> None:
        self.chosen = list(chosen)
        self._atoms, self._options, self._costs = atoms, widths, len(costs)
        self._present = {atom: options[number] for atom, options, number in zip(atoms, widths, chosen, strict=True)}
        number_of = {atom: number for number, atom in enumerate(atoms)}
        self._parts: list[list[tuple[int, Part]]] = [[] for _ in atoms]
        self._shared: list[dict[int, list[tuple[int, Part]]]] = [{} for _ in atoms]
        for row, cost in enumerate(costs):
            for part in cost.parts:
                of_part = [number_of[atom] for atom in part.atoms if atom in number_of]
                for place in of_part:
                    self._parts[place].append((row, part))
                    for other in of_part:
                        if other != place:
                            self._shared[place].setdefault(other, []).append((row, part))
        self.changes = [self._changes_of(place) for place in range(len(atoms))]

    @property
    def widths(self) -> Widths:
        """Those that the places have, by their atoms."""
        return self._present

    def neighbours(self, place: int) -> Collection[int]:
        """Return the places whose widths change what those of one cost."""
        return self._shared[place].keys()

    def change(self, place: int, number: int, other: int, other_number: int) -> NDArray[np.float64]:
        """Return what two widths change together, (costs,)."""
        both = self.changes[place][:, number] + self.changes[other][:, other_number]
        for row, part in self._shared[place].get(other, ()):
            both[row] += (
                self._at(part, {place: number, other: other_number})
                + self._at(part, {})
                - self._at(part, {place: number})
                - self._at(part, {other: other_number})
            )
        return both

    def move(self, numbers: Mapping[int, int]) -> None:
        """Give places other widths, by number."""
        for place, number in numbers.items():
            self.chosen[place] = number
            self._present[self._atoms[place]] = self._options[place][number]
        for place in {*numbers, *(other for moved in numbers for other in self._shared[moved])}:
            self.changes[place] = self._changes_of(place)

    def _changes_of(self, place: int) -> NDArray[np.float64]:
        changes = np.zeros((self._costs, len(self._options[place])))
        for row, part in self._parts[place]:
            changes[row] += [self._at(part, {place: number}) for number in range(len(self._options[place]))]
            changes[row] -= self._at(part, {})
        return changes

    def _at(self, part: Part, numbers: Mapping[int, int]) -> float:
        """Return a part of a cost where some places have other widths."""
        for place, number in numbers.items():
            self._present[self._atoms[place]] = self._options[place][number]
        price = part(self._present)
        for place in numbers:
            self._present[self._atoms[place]] = self._options[place][self.chosen[place]]
        return price
