"""Options, each declared once as a field of a dataclass: its name, type, default and meaning.

Command lines, the keys of experiments, and what a run's configuration repeats are made from the fields.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from netgraft.errors import RequestError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")

MOST_STEPS = 10**8
"""Of a phase: months of any training."""

Scope = Literal["pair", "run", ""]
SCOPES: tuple[Scope, ...] = get_args(Scope)

Section = Literal["data", "models", "method", "run", "expert"]
SECTIONS: tuple[Section, ...] = get_args(Section)


@dataclass(frozen=True)
class Option:
    """A declared field.

    Attributes:
        name: Of the field, and of the key in an experiment.
        type: Of its values, other than None.
        default: ``dataclasses.MISSING`` where a value must be given.
        meaning: In a phrase.
        choices: All that a text may be; any if empty.
        minimum: Smallest number; any finite one if None.
        maximum: Largest number, likewise.
        flag: On the command line.
        scope: Where it may stand in an experiment: a ``pair`` of data, teacher and student, a ``run``, or nowhere.
        section: Of the help, where it stands.
        recorded: Whether a run's configuration repeats it as it was asked for.
        optional: Whether None is a value.
    """

    name: str
    type: Any
    default: Any
    meaning: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    flag: str
    scope: Scope
    section: Section
    recorded: bool
    optional: bool

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING

    @property
    def _called(self) -> str:
        return self.name if self.flag == _flag(self.name) else f"{self.name} ({self.flag})"

    def read(self, text: str) -> Any:
        """Read a value from a command line's text; numbers of a list are separated by commas.

        Raises:
            RequestError: The text is none of the choices, or no value of the type.
        """
        if self.choices and text not in self.choices:
            raise RequestError(f"{self.name} must be one of {', '.join(self.choices)}, not {text!r}")
        try:
            return _value(self.type, text)
        except ValueError:
            default = ",".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
            like = f"like its default {default}" if default is not None else "a number"
            raise RequestError(f"{self.name} must be {like}, not {text!r}") from None

    def check(self, value: object) -> Any:
        """Return a value from a TOML file as the field takes it.

        Raises:
            RequestError: It is of another type, none of the choices, or outside its range.
        """
        kind = str if self.type is Path else self.type
        try:
            value = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise RequestError(f"{self.name} can't be {value!r}: {str(error).lower()}; correct it") from error
        if self.choices and value not in self.choices:
            raise RequestError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}")
        self._check_text(value)
        self._check_range(value)
        return Path(value) if self.type is Path else value

    def check_held(self, value: object) -> None:
        """Make sure of a value that a field holds, whoever set it.

        Raises:
            RequestError: It is of another type or outside its range.
        """
        if value is None and self.optional:
            return
        several = get_origin(self.type) is tuple
        kind = get_args(self.type)[0] if several else self.type
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
        if several and not isinstance(value, tuple | list):
            raise RequestError(f"{self.name} must be a tuple, each of it {expected[kind]}, not {_brief(value)}")
        for each in value if isinstance(value, tuple | list) and several else (value,):
            if not _is_of(kind, each):
                raise RequestError(f"{self.name} must be {expected[kind]}, not {_brief(each)}; correct it")
            self._check_text(each)
        self._check_range(value)

    def _check_text(self, value: object) -> None:
        """Refuse what no path and no command line can hold, and what would be taken for not given."""
        if isinstance(value, str | Path) and (value == "" or "\0" in str(value)):
            what = "empty" if value == "" else f"a text with a NUL, {_brief(str(value))}"
            raise RequestError(f"{self.name} can't be {what}; give another, or leave it out")

    def _check_range(self, value: Any) -> None:
        for each in value if isinstance(value, tuple | list) else (value,):
            if not (_is_of(int, each) or _is_of(float, each)):
                continue
            if not isinstance(each, Integral) and not math.isfinite(each):
                raise RequestError(f"{self._called} must be a finite number, not {each}; give one")
            if self.minimum is not None and each < self.minimum:
                raise RequestError(f"{self._called} must be at least {self.minimum:,}, not {_brief(each)}; give more")
            if self.maximum is not None and each > self.maximum:
                raise RequestError(f"{self._called} must be at most {self.maximum:,}, not {_brief(each)}; give less")


def option(
    default: T,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    flag: str = "",
    scope: Scope = "",
    section: Section = "run",
    recorded: bool = False,
) -> T:
    """Declare a field with a default. Arguments as the attributes of :class:`Option`."""
    declaration = _declaration(meaning, choices, (minimum, maximum), flag, scope, section, recorded)
    return field(default=default, metadata=declaration)


def required(meaning: str, *, scope: Scope = "", section: Section = "run") -> Any:
    """Declare a field without a default."""
    return field(metadata=_declaration(meaning, (), (None, None), "", scope, section, recorded=False))


def group(kind: type[T]) -> T:
    """Declare a field whose options are those of another dataclass."""
    return field(default_factory=kind, metadata={"group": kind})


def _declaration(
    meaning: str,
    choices: Sequence[str],
    bounds: tuple[float | None, float | None],
    flag: str,
    scope: Scope,
    section: Section,
    recorded: bool,
) -> dict[str, Any]:
    return {
        "meaning": meaning,
        "choices": tuple(choices),
        "minimum": bounds[0],
        "maximum": bounds[1],
        "flag": flag,
        "scope": scope,
        "section": section,
        "recorded": recorded,
    }


def declared(kind: type) -> dict[str, Option]:
    """Return the options of a dataclass, those of its groups included, by their names."""
    hints = get_type_hints(kind)
    found: dict[str, Option] = {}
    for f in fields(kind):
        if "group" in f.metadata:
            found |= declared(f.metadata["group"])
        elif "meaning" in f.metadata:
            facts = dict(f.metadata)
            facts["flag"] = facts["flag"] or _flag(f.name)
            kind = _without_none(hints[f.name])
            found[f.name] = Option(f.name, kind, f.default, **facts, optional=kind is not hints[f.name])
    return found


def check_held(instance: Any) -> None:
    """Make sure that a dataclass holds values of its options' types and ranges, those of its groups included.

    Raises:
        RequestError: One is of another type, not finite, too small or too large.
    """
    known = declared(type(instance))
    for f in fields(instance):
        if "group" in f.metadata:
            check_held(getattr(instance, f.name))
        elif f.name in known:
            known[f.name].check_held(getattr(instance, f.name))


def build(kind: type[D], values: Mapping[str, Any]) -> D:
    """Make a dataclass of values by name, those of its groups included; what is not given has its default."""
    own: dict[str, Any] = {f.name: values[f.name] for f in fields(kind) if f.name in values}
    for f in fields(kind):
        if "group" in f.metadata and f.name not in own:
            inner = f.metadata["group"]
            own[f.name] = build(inner, {name: values[name] for name in declared(inner) if name in values})
    return kind(**own)


def held(instance: Any) -> dict[str, Any]:
    """Return the values of all options that a dataclass holds, those of its groups included, by their names."""
    found: dict[str, Any] = {}
    for f in fields(instance):
        if "group" in f.metadata:
            found |= held(getattr(instance, f.name))
        elif "meaning" in f.metadata:
            found[f.name] = getattr(instance, f.name)
    return found


def recorded(instance: Any) -> dict[str, Any]:
    """Return the values that a run's configuration repeats."""
    found: dict[str, Any] = {}
    for f in fields(instance):
        if "group" in f.metadata:
            found |= recorded(getattr(instance, f.name))
        elif f.metadata.get("recorded"):
            found[f.name] = getattr(instance, f.name)
    return found


def asked(instance: Any) -> dict[str, Any]:
    """Return the values that aren't their options' defaults, those of groups included, as JSON writes them."""
    known = declared(type(instance))
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in held(instance).items()
        if known[name].required or value != known[name].default
    }


def shown(value: object) -> str:
    """Write a default as it is given on a command line."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in {Union, types.UnionType}:
        [hint] = [kind for kind in get_args(hint) if kind is not type(None)]
    return hint


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_of(kind: type, value: object) -> bool:
    if kind in {int, float}:  # NumPy's numbers too
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _brief(value: object) -> str:
    try:
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)
    except ValueError:  # of thousands of digits
        return "a number without end"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _value(kind: Any, text: str) -> Any:
    # by hand: msgspec knows neither yes and no nor lists with commas
    if get_origin(kind) is tuple:
        return tuple(_value(get_args(kind)[0], part) for part in text.split(","))
    if kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in known:
            raise ValueError(text)
        return known[text.lower()]
    return kind(text)
