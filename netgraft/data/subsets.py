"""Which few images of a training partition a run may see: drawn by a seed, printed, published as a file.

An image is drawn by rank: the SHA-256 of ``seed/class/position`` orders the images of a class, where position
counts the images of that class in the order of the data set, and the first ``shots`` of that order are taken.
So a draw needs no random generator, is the same on every platform, doesn't depend on the other classes, and
fewer shots are always a subset of more.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from netgraft.data.text_files import parse_json, read_text
from netgraft.errors import RequestError
from netgraft.files import write_text


@dataclass(frozen=True)
class FewShotSubset:
    """The images that a run may see, by their position in the training partition; labels are not kept.

    Attributes:
        dataset: Name of the data set.
        population: Images in its training partition.
        classes: Number of classes; None where images were drawn regardless of class.
        shots: Images a class; None where images were drawn regardless of class.
        seed: Of the draw.
        indices: Positions in the training partition, class by class.

    Raises:
        RequestError: Indices that repeat or lie outside the population.

    Examples:
        >>> from netgraft import open_data
        >>> source = open_data("digits")
        >>> subset = FewShotSubset.draw(source.train.labels, shots=5, seed=0, dataset=source.name)
        >>> print(subset)
        digits: 5 images a class x 10 classes = 50 of 1,197, seed 0, digest 9418b912bf32
        >>> images = source.train.load_many(subset.indices)
        >>> len(images), images[0].size
        (50, (8, 8))
        >>> FewShotSubset.from_json(subset.to_json()) == subset
        True
    """

    dataset: str
    population: int
    classes: int | None
    shots: int | None
    seed: int
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.indices)) != len(self.indices):
            raise RequestError(f"expected each image of {self.dataset} once, got repeated indices; draw it again")
        outside = next((index for index in self.indices if not 0 <= index < self.population), None)
        if outside is not None:
            raise RequestError(
                f"expected indices from 0 to {self.population - 1} for {self.dataset}, got {outside}; "
                "use the subset with the data set that it was drawn from"
            )

    @classmethod
    def draw(
        cls, labels: Sequence[int], *, shots: int, seed: int, dataset: str, held_out: Collection[int] = ()
    ) -> FewShotSubset:
        """Draw ``shots`` images of each class.

        Args:
            labels: Class (0 to K - 1) of each image of the training partition.
            shots: Images a class.
            seed: Of the draw; the same seed with fewer shots draws a subset.
            dataset: Name of the data set.
            held_out: Positions of images that are not drawn.

        Raises:
            RequestError: ``shots`` is not positive or more than the smallest class has.
        """
        if shots <= 0:
            raise RequestError(f"expected at least 1 image a class, got {shots} shots; ask for 1 or more")
        if not labels or min(labels) < 0:
            raise RequestError(
                f"expected a class for each image of {dataset}, got images without one; "
                "ask for a number of images instead of shots"
            )
        members: list[list[int]] = [[] for _ in range(max(labels) + 1)]
        excluded = frozenset(held_out)
        for index, label in enumerate(labels):
            if index not in excluded:
                members[label].append(index)
        smallest = min(range(len(members)), key=lambda label: len(members[label]))
        if len(members[smallest]) < shots:
            raise RequestError(
                f"expected at least {shots} images in each class of {dataset}, got {len(members[smallest])} in "
                f"class {smallest}{_besides(held_out)}; ask for fewer shots"
            )
        chosen = [
            own[position]
            for label, own in enumerate(members)
            for position in _first_ranked(len(own), shots, seed, str(label))
        ]
        return cls(dataset, len(labels), len(members), shots, seed, tuple(chosen))

    @classmethod
    def draw_unlabeled(
        cls, population: int, *, images: int, seed: int, dataset: str, held_out: Collection[int] = ()
    ) -> FewShotSubset:
        """Draw images regardless of their class.

        Args:
            population: Images in the training partition.
            images: How many of them.
            seed: Of the draw; the same seed with fewer images draws a subset.
            dataset: Name of the data set.
            held_out: Positions of images that are not drawn.

        Raises:
            RequestError: ``images`` is not positive or more than there are.
        """
        if images <= 0:
            raise RequestError(f"expected at least 1 image, got {images}; ask for 1 or more")
        excluded = frozenset(held_out)
        members = [index for index in range(population) if index not in excluded]
        if images > len(members):
            raise RequestError(
                f"expected at least {images} images in {dataset}, got {len(members)}{_besides(held_out)}; ask for "
                "fewer images"
            )
        chosen = [members[position] for position in _first_ranked(len(members), images, seed, "any")]
        return cls(dataset, population, None, None, seed, tuple(chosen))

    def others(self, most: int) -> tuple[int, ...]:
        """Return the positions of images that are not among these, ascending; of too many always the same part.

        Args:
            most: How many at most.
        """
        few = frozenset(self.indices)
        members = [index for index in range(self.population) if index not in few]
        if len(members) > most:
            members = sorted(members[position] for position in _first_ranked(len(members), most, 0, "held out"))
        return tuple(members)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of all fields."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the fields and the digest as JSON."""
        return json.dumps({**asdict(self), "digest": self.digest}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FewShotSubset:
        """Read what ``to_json`` wrote.

        Raises:
            RequestError: The text is no subset, or its digest doesn't belong to its fields.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise RequestError(f"expected a subset in JSON, got a text that is none ({error}); draw it again") from None
        subset = cls(**_checked_fields(content))
        if content["digest"] != subset.digest:
            raise RequestError(
                f"expected a subset with digest {subset.digest[:12]}, got {str(content['digest'])[:12]!r}: "
                "its fields were changed after it was saved; draw it again"
            )
        return subset

    def save(self, path: Path) -> None:
        """Write the subset to ``path``, all of it or nothing.

        Raises:
            RunError: The file can't be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> FewShotSubset:
        """Read a subset file.

        Raises:
            RequestError: There is no such file, or it is no intact subset.
        """
        try:
            return cls.from_json(read_text(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"expected a readable subset file at {path}, got: {error}; check the path") from None
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from None

    def __str__(self) -> str:
        total = f"{len(self.indices):,} of {self.population:,}"
        if self.shots is None:
            amount = f"{total} images regardless of class"
        else:
            amount = f"{self.shots} {_plural('image', self.shots)} a class x {self.classes} classes = {total}"
        return f"{self.dataset}: {amount}, seed {self.seed}, digest {self.digest[:12]}"


def hold_out(population: int, amount: float, *, dataset: str) -> tuple[int, ...]:
    """Choose images that nothing is made of: they measure what comes out.

    They depend on nothing but how many images there are, so runs with different seeds and numbers of images are
    measured on the same ones; fewer are always a part of more.

    Args:
        population: Images in the training partition.
        amount: How many of them; below 1 the part of them, rounded, at least one image.
        dataset: Name of the data set.

    Returns:
        Positions, ascending.

    Raises:
        RequestError: The amount is not positive, neither a part nor a whole number, or leaves no image to learn from.

    Examples:
        >>> hold_out(10, 0.2, dataset="photos") == hold_out(10, 2, dataset="photos")
        True
    """
    is_number = isinstance(amount, int | float) and not isinstance(amount, bool) and math.isfinite(amount)
    if not is_number or amount <= 0 or (amount >= 1 and amount != int(amount)):
        raise RequestError(
            f"expected a part between 0 and 1 or a number of images to hold out, got {amount!r}; give one"
        )
    number = max(1, round(amount * population)) if amount < 1 else int(amount)
    if number >= population:
        raise RequestError(
            f"expected more than the {number:,} images to hold out in {dataset}, got {population:,}; hold out fewer"
        )
    return tuple(sorted(_first_ranked(population, number, 0, "held out")))


def _besides(held_out: Collection[int]) -> str:
    return f" besides the {len(held_out):,} that are held out" if held_out else ""


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"


def _first_ranked(population: int, number: int, seed: int, group: str) -> list[int]:
    def rank(position: int) -> bytes:
        return hashlib.sha256(f"{seed}/{group}/{position}".encode()).digest()

    return sorted(range(population), key=rank)[:number]


def _checked_fields(content: Any) -> dict[str, Any]:
    """Return the fields of a subset read from JSON, each of its type."""
    names = {field.name for field in fields(FewShotSubset)}
    if not isinstance(content, dict) or set(content) != names | {"digest"}:
        raise RequestError(
            f"expected a subset with {', '.join(sorted(names))} and digest, got other fields; draw it again"
        )

    def is_integer(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    well_formed = (
        isinstance(content["dataset"], str)
        and all(is_integer(content[name]) for name in ("population", "seed"))
        and all(content[name] is None or is_integer(content[name]) for name in ("classes", "shots"))
        and isinstance(content["indices"], list)
        and all(is_integer(index) for index in content["indices"])
    )
    if not well_formed:
        raise RequestError("expected a subset with whole numbers and a list of indices, got other types; draw it again")
    values = {name: content[name] for name in names}
    values["indices"] = tuple(values["indices"])
    return values
