"""Options, each declared once as a field of a dataclass: its name, type, default and meaning.

Command lines, the keys of experiments, and what a run's configuration repeats are made from the fields.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from netgraft.errors import RequestError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")

Scope = Literal["pair", "run", ""]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Option:
    """A declared field.

    Attributes:
        name: Of the field, and of the key in an experiment.
        type: Of its values, other than None.
        default: ``dataclasses.MISSING`` where a value must be given.
        meaning: In a phrase.
        choices: All that a text may be; any if empty.
        minimum: Smallest number; any if None.
        flag: On the command line.
        scope: Where it may stand in an experiment: a ``pair`` of data, teacher and student, a ``run``, or nowhere.
        recorded: Whether a run's configuration repeats it as it was asked for.
    """

    name: str
    type: Any
    default: Any
    meaning: str
    choices: tuple[str, ...]
    minimum: int | None
    flag: str
    scope: Scope
    recorded: bool

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING

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
            RequestError: It is of another type, or none of the choices.
        """
        kind = str if self.type is Path else self.type
        try:
            value = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise RequestError(f"{self.name} can't be {value!r}: {str(error).lower()}; correct it") from error
        if self.choices and value not in self.choices:
            raise RequestError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}")
        return Path(value) if self.type is Path else value


def option(
    default: T,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    minimum: int | None = None,
    flag: str = "",
    scope: Scope = "",
    recorded: bool = False,
) -> T:
    """Declare a field with a default. Arguments as the attributes of :class:`Option`."""
    return field(default=default, metadata=_declaration(meaning, choices, minimum, flag, scope, recorded))


def required(meaning: str, *, scope: Scope = "") -> Any:
    """Declare a field without a default."""
    return field(metadata=_declaration(meaning, (), None, "", scope, recorded=False))


def group(kind: type[T]) -> T:
    """Declare a field whose options are those of another dataclass."""
    return field(default_factory=kind, metadata={"group": kind})


def _declaration(
    meaning: str, choices: Sequence[str], minimum: int | None, flag: str, scope: Scope, recorded: bool
) -> dict[str, Any]:
    return {
        "meaning": meaning,
        "choices": tuple(choices),
        "minimum": minimum,
        "flag": flag,
        "scope": scope,
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
            facts["flag"] = facts["flag"] or f"--{f.name.replace('_', '-')}"
            found[f.name] = Option(f.name, _without_none(hints[f.name]), f.default, **facts)
    return found


def build(kind: type[D], values: Mapping[str, Any]) -> D:
    """Make a dataclass of values by name, those of its groups included; what is not given has its default."""
    own: dict[str, Any] = {f.name: values[f.name] for f in fields(kind) if f.name in values}
    for f in fields(kind):
        if "group" in f.metadata and f.name not in own:
            inner = f.metadata["group"]
            own[f.name] = build(inner, {name: values[name] for name in declared(inner) if name in values})
    return kind(**own)


def recorded(instance: Any) -> dict[str, Any]:
    """Return the values that a run's configuration repeats."""
    found: dict[str, Any] = {}
    for f in fields(instance):
        if "group" in f.metadata:
            found |= recorded(getattr(instance, f.name))
        elif f.metadata.get("recorded"):
            found[f.name] = getattr(instance, f.name)
    return found


def shown(value: object) -> str:
    """Write a default as it is given on a command line."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in {Union, types.UnionType}:
        [hint] = [kind for kind in get_args(hint) if kind is not type(None)]
    return hint


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
