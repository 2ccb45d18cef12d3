"""Which of a model's classes the classes of labelled images are: by their names, never silently by their positions.

A model names its classes itself (timm's ``label_names``, which ``netgraft train`` writes and students inherit), or has
as many as a list of ImageNet's that timm brings along, of which each class has a synset number (wnid) and words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from netgraft.data.image_set import ImageSet
from netgraft.data.text_files import parse_json, read_text
from netgraft.errors import RequestError
from netgraft.models.creation import class_count, label_names, pretrained_cfg

MatchedBy = Literal["names", "wnid", "map", "number"]
"""The model's own names or ImageNet's words; ImageNet's synset numbers; a class map; the order alone."""

HOW_TO_SAY = "--class-map FILE, which says where each class stands among the model's"


@dataclass(frozen=True)
class MatchedImages:
    """Images whose labels are a model's classes.

    Attributes:
        images: With labels that are positions among the model's K outputs.
        by: What the classes were matched by; None for images without labels.
        warning: What a person has to know about that; empty if nothing.
    """

    images: ImageSet
    by: MatchedBy | None
    warning: str = ""

    @property
    def classes_seen(self) -> int:
        """How many classes the images show, which may be fewer than the model's."""
        return len(set(self.images.labels or ()))


@dataclass(frozen=True)
class MatchedData:
    """What a student is made of and measured on, with the classes of one model as labels.

    Attributes:
        train: The few images are drawn from these.
        test: None where there are no test images.
        class_map: By which both were matched, if by one.
    """

    train: MatchedImages
    test: MatchedImages | None
    class_map: Mapping[str, int] | None = None

    @classmethod
    def of(
        cls,
        train: ImageSet,
        test: ImageSet | None,
        model: nn.Module,
        *,
        name: str,
        class_map: Mapping[str, int] | None = None,
    ) -> MatchedData:
        """Match both. Arguments and errors as those of :func:`match_classes`."""
        match = partial(match_classes, model=model, name=name, class_map=class_map)
        return cls(match(train), None if test is None else match(test), class_map)

    @property
    def warnings(self) -> list[str]:
        """What a person has to know, once where both have the same class folders."""
        sets = [self.train] if self.test is None else [self.test, self.train]
        return [*{each.images.class_names: each.warning for each in sets if each.warning}.values()]


def match_classes(
    images: ImageSet, model: nn.Module, *, name: str, class_map: Mapping[str, int] | None = None
) -> MatchedImages:
    """Number the classes of images as a model does.

    A class map overrules everything. Names are compared as they are, then without case, spaces and underscores where
    that leaves one class. Where the model or the images have no names, or none in common, classes are matched by number
    if there are equally many.

    Args:
        images: Of some or all of the model's classes; without labels they are returned as they are.
        model: A classifier of K classes.
        name: Of the model, for messages.
        class_map: Class of the images -> its position among the model's.

    Returns:
        The same images with the model's positions as labels.

    Raises:
        RequestError: A class is none of the model's, or can't be told from another.
    """
    if images.labels is None:
        return MatchedImages(images, None)
    if class_map is not None:
        return MatchedImages(_renumbered(images, _mapped(images, class_map, model, name), model), "map")
    known = _KnownClasses.of(model)
    if known is not None and images.class_names is not None:
        found = {each: known.find(each) for each in images.class_names}
        strange = [each for each, positions in found.items() if len(positions) != 1]
        if not strange:
            positions = {each: position for each, [position] in found.items()}
            _refuse_doubles(images, positions, name)
            return MatchedImages(_renumbered(images, positions, model), known.by(images.class_names))
        if len(strange) < len(found):
            familiar = next(each for each in found if each not in strange)
            why = "could be several of them" if found[strange[0]] else "is none of them"
            raise RequestError(
                f"{name} knows {familiar!r} of the classes of {images.name} by name, but {strange[0]!r} {why}; rename "
                f"this folder, or give {HOW_TO_SAY}"
            )
    if images.classes != class_count(model):
        raise RequestError(
            f"{name} answers with {class_count(model)} classes but {images.name} has {images.classes}; give a model "
            f"trained for these classes, or {HOW_TO_SAY}"
        )
    warning = ""
    if known is not None and images.class_names is not None:
        warning = (
            f"warning: no class of {images.name} ({images.class_names[0]!r}, ...) has the name of one of {name}'s "
            f"({known.example!r}, ...), so they are matched by number, the folders in alphabetical order; if that is "
            "not the model's order, every accuracy is wrong; give --class-map FILE to be sure"
        )
    return MatchedImages(images, "number", warning)


def answer_names(model: nn.Module) -> tuple[str, ...]:
    """Return what people call each of a model's K answers, all different.

    Names of its own; or else the first of ImageNet's words, with the synset number where several classes have it; or
    else, as for single classes without a name, the position.

    Args:
        model: A classifier of K classes.
    """
    count, named = class_count(model), label_names(model)
    subset = None if named else infer_imagenet_subset(model)
    if subset is not None:
        info = ImageNetInfo(subset)
        words = [text.partition(",")[0].strip() for text in info.label_descriptions()]
        shared = {word for word, times in Counter(words).items() if times > 1}
        numbers = info.label_names()
        named = {
            position: f"{word} ({numbers[position]})" if word in shared else word for position, word in enumerate(words)
        }
    return tuple(named.get(position, str(position)) for position in range(count))


def read_class_map(path: Path) -> dict[str, int]:
    """Read where classes stand among a model's: timm's format, or a dictionary in JSON; never a pickle.

    Args:
        path: A ``.txt`` file with a class name a line, of which the first is class 0, or a ``.json`` file of names and
            numbers.

    Returns:
        Name -> position, at least one.

    Raises:
        RequestError: There is no such file, or it is neither.
    """
    expected = "a .txt file with a class name a line or a .json file with a dictionary of names and numbers"
    if path.suffix.lower() not in {".txt", ".json"}:
        raise RequestError(f"expected {expected} as class map, got {path}; write one of these")
    try:
        text = read_text(path, encoding="utf-8-sig")
        named = _read_json(text) if path.suffix.lower() == ".json" else _read_lines(text)
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"expected {expected}, got {path}: {error}; correct it") from error
    if not named:
        raise RequestError(f"expected {expected}, got {path} without any name; correct it")
    return named


def _read_json(text: str) -> dict[str, int]:
    content = parse_json(text)
    if not isinstance(content, dict):
        raise TypeError(f"{type(content).__name__} instead of a dictionary")
    for name, number in content.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name!r} has {number!r} instead of a whole number")
    return content


def _read_lines(text: str) -> dict[str, int]:
    named: dict[str, int] = {}
    for number, line in enumerate(text.split("\n")):
        name = line.strip()
        if name in named:
            raise ValueError(f"{name!r} in lines {named[name] + 1} and {number + 1}")
        if name:
            named[name] = number
    return named


@dataclass(frozen=True)
class _Names:
    """Names of positions, which may be shared."""

    exact: Mapping[str, Collection[int]]
    loose: Mapping[str, Collection[int]]

    @classmethod
    def of(cls, named: Iterable[tuple[str, int]]) -> _Names:
        exact: dict[str, set[int]] = {}
        loose: dict[str, set[int]] = {}
        for name, position in named:
            exact.setdefault(name, set()).add(position)
            loose.setdefault(_loosely(name), set()).add(position)
        return cls(exact, loose)


def _loosely(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").split())


@dataclass(frozen=True)
class _KnownClasses:
    """What a model's classes are called: by a name each, and by words that several may share."""

    names: _Names
    words: _Names
    by_name: MatchedBy

    @classmethod
    def of(cls, model: nn.Module) -> _KnownClasses | None:
        """Return what is known of a model's classes; None where that is nothing."""
        own = label_names(model)
        if own:
            described = pretrained_cfg(model).get("label_descriptions") or {}
            words = {position: described.get(name, "") for position, name in own.items()}
            return cls._described(own, words, "names")
        subset = infer_imagenet_subset(model)
        if subset is None:
            return None
        info = ImageNetInfo(subset)
        return cls._described(dict(enumerate(info.label_names())), dict(enumerate(info.label_descriptions())), "wnid")

    @classmethod
    def _described(cls, names: Mapping[int, str], descriptions: Mapping[int, str], by_name: MatchedBy) -> _KnownClasses:
        """Know each class by its name, its description and, as ImageNet's are lists of synonyms, each part of that."""
        words = [
            (word.strip(), position)
            for position, description in descriptions.items()
            for word in {description, *description.split(",")}
            if word.strip()
        ]
        return cls(_Names.of((name, position) for position, name in names.items()), _Names.of(words), by_name)

    @property
    def example(self) -> str:
        """A name."""
        return next(iter(self.names.exact))

    def find(self, name: str) -> Collection[int]:
        """Return the positions that a name may mean: one if it is known, none or several if it isn't."""
        loosely = _loosely(name)
        for kind in (self.names.exact, self.words.exact):
            if name in kind:
                return kind[name]
        return self.names.loose.get(loosely) or self.words.loose.get(loosely, ())

    def by(self, found: Iterable[str]) -> MatchedBy:
        """Say whether classes that were found have the model's names, or words for them."""
        return self.by_name if all(_loosely(name) in self.names.loose for name in found) else "names"


def _refuse_doubles(images: ImageSet, positions: Mapping[str, int], name: str) -> None:
    first: dict[int, str] = {}
    for each, position in positions.items():
        if position in first:
            raise RequestError(
                f"{first[position]!r} and {each!r} of {images.name} both mean class {position} of {name}; put them "
                f"into one folder, or give {HOW_TO_SAY}"
            )
        first[position] = each


def _mapped(images: ImageSet, class_map: Mapping[str, int], model: nn.Module, name: str) -> dict[str, int]:
    """Return the part of a class map that is about the images."""
    if images.class_names is None:
        raise RequestError(f"{images.name} doesn't name its classes, so a class map can't; leave --class-map out")
    count = class_count(model)
    for each in images.class_names:
        if each not in class_map:
            raise RequestError(f"the class map says nothing of {each!r}, a class of {images.name}; add it to the file")
        if not 0 <= class_map[each] < count:
            raise RequestError(
                f"the class map puts {each!r} at {class_map[each]}, but {name} has classes 0 to {count - 1}; correct it"
            )
    return {each: class_map[each] for each in images.class_names}


def _renumbered(images: ImageSet, positions: Mapping[str, int], model: nn.Module) -> ImageSet:
    assert images.labels is not None
    assert images.class_names is not None
    numbers = [positions[name] for name in images.class_names]
    names, count = label_names(model), class_count(model)
    return replace(
        images,
        labels=tuple(numbers[label] for label in images.labels),
        classes=count,
        class_names=tuple(names[position] for position in range(count)) if len(names) == count else None,
    )
