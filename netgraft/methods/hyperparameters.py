"""Hyper-parameters: the options that are fields of a method's dataclass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from netgraft.errors import RequestError
from netgraft.options import MOST_STEPS, declared, option

T = TypeVar("T")


def hyperparameter(
    default: T,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> T:
    """Declare a field of a method's dataclass; command lines and lists are made from it.

    Args:
        default: Of the field's type.
        meaning: In a phrase.
        choices: All that a text may be; any if empty.
        minimum: Smallest number; any finite one if None.
        maximum: Largest number; of whole ones ``MOST_STEPS`` if None.
    """
    one = default[0] if isinstance(default, tuple) else default
    if maximum is None and not isinstance(one, float | str | bool):
        maximum = MOST_STEPS  # whatever it counts, no run comes to the end of more
    return option(default, meaning, choices=choices, minimum=minimum, maximum=maximum)


def parse(method: type, name: str, text: str) -> object:
    """Read the value of a hyper-parameter from a command line's text; lists are separated by commas.

    Args:
        method: The dataclass.
        name: Of its field.
        text: The value.

    Raises:
        RequestError: No such hyper-parameter, or the text is no value of the field's type or none of its choices.
    """
    known = declared(method)
    if name not in known:
        raise RequestError(f"{method.__name__} has no hyper-parameter {name!r}; choose from {', '.join(known)}")
    return known[name].read(text)


def check_choices(method: Any, *names: str) -> None:
    """Make sure that hyper-parameters hold one of their choices.

    Args:
        method: A method with its hyper-parameters.
        names: Of its fields; those without choices may hold anything.

    Raises:
        RequestError: One holds something else.
    """
    known = declared(type(method))
    for name in names:
        choices, value = known[name].choices, getattr(method, name)
        if choices and value not in choices:
            raise RequestError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


@contextmanager
def checked() -> Iterator[None]:
    """Turn what a loss or a connector says of its hyper-parameters into a refusal of the request.

    Raises:
        RequestError: With the message of a ``ValueError`` that was raised inside.
    """
    try:
        yield
    except ValueError as error:
        raise RequestError(str(error)) from error
