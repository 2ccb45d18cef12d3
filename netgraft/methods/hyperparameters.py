"""One place that knows a hyper-parameter's name, type, default and meaning: the dataclass field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields
from typing import Any, TypeVar, get_type_hints

from netgraft.errors import RequestError

T = TypeVar("T")


def hyperparameter(default: T, meaning: str, *, choices: Sequence[str] = ()) -> T:
    """Declare a field of a method's dataclass; command lines and lists are made from it."""
    return field(default=default, metadata={"meaning": meaning, "choices": tuple(choices)})


def meanings(method: type) -> dict[str, tuple[Any, Any, str]]:
    """For each hyper-parameter of a method's dataclass: its type, its default and its meaning."""
    hints = get_type_hints(method)
    return {f.name: (hints[f.name], f.default, f.metadata["meaning"]) for f in fields(method)}


def parse(method: type, name: str, text: str) -> object:
    """Read the value of hyper-parameter ``name`` from a command line's text; lists are separated by commas.

    Raises:
        RequestError: No such hyper-parameter, or the text is no value of the field's type or none of its choices.
    """
    known = meanings(method)
    if name not in known:
        raise RequestError(f"{method.__name__} has no hyper-parameter {name!r}; choose from {', '.join(known)}")
    kind, default, _ = known[name]
    choices = next(f.metadata["choices"] for f in fields(method) if f.name == name)
    if choices and text not in choices:
        raise RequestError(f"{name} must be one of {', '.join(choices)}, not {text!r}")
    try:
        return _value(kind, default, text)
    except ValueError:
        raise RequestError(f"{name} must be like its default {_show(default)}, not {text!r}") from None


def _value(kind: Any, default: Any, text: str) -> object:
    if isinstance(default, tuple):
        return tuple(type(default[0])(part) for part in text.split(","))
    if kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in known:
            raise ValueError(text)
        return known[text.lower()]
    return kind(text)


def _show(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@contextmanager
def checked() -> Iterator[None]:
    """Turn what a loss or a connector says of its hyper-parameters into a refusal of the request."""
    try:
        yield
    except ValueError as error:
        raise RequestError(str(error)) from error
