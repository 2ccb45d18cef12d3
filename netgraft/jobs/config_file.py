"""What a run was asked for as a TOML file: every run writes one, and ``--config`` of its command repeats it."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from netgraft.data.text_files import read_text
from netgraft.errors import RequestError
from netgraft.jobs.options import JobOptions, ordered
from netgraft.options import held, shown

SETTINGS = "settings"
"""Table of the hyper-parameters."""

NOT_KEPT = ("out", "resume")
"""Where a run lies and whether it goes on say nothing of what it is."""

ONE_OF = (("shots", "images", "subset"), ("student", "keep"))
"""Options that exclude one another: one that is given later replaces the others."""


def written(job: JobOptions, hyperparameters: Mapping[str, str], *, command: str) -> str:
    """Return the options of a job that differ from their defaults, in the order in which people read them.

    Args:
        job: What was asked for.
        hyperparameters: Likewise, as text.
        command: That repeats the run.
    """
    values = held(job)
    lines = [f"# netgraft {command} --config FILE repeats this run; options on the command line override it"]
    lines += [
        f"{name} = {_toml(values[name])}"
        for name, option in ordered(type(job)).items()
        if name not in NOT_KEPT and (option.required or values[name] != option.default)
    ]
    if hyperparameters:
        lines += ["", f"[{SETTINGS}]", *(f"{name} = {_toml(_plain(text))}" for name, text in hyperparameters.items())]
    return "\n".join(lines) + "\n"


def read(path: Path, kind: type[JobOptions]) -> dict[str, Any]:
    """Read options of a job, each of its type, and hyper-parameters as text.

    Args:
        path: Of the file.
        kind: The job's.

    Returns:
        Options by name, and ``settings`` where there are some.

    Raises:
        RequestError: There is no such file, it is no TOML, or it has an unknown key or a value of another type.
    """
    try:
        content = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"expected a configuration in TOML at {path}, got: {reason}; correct it") from None
    settings = content.pop(SETTINGS, {})
    if not isinstance(settings, dict) or any(isinstance(value, dict) for value in settings.values()):
        raise RequestError(
            f"{path}: expected a table of hyper-parameters for {SETTINGS}, got another; write name = value"
        )
    known = {name: option for name, option in ordered(kind).items() if name not in NOT_KEPT}
    values = {}
    for name, value in content.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise RequestError(f"{path}: there is no option {name!r}; {hint}")
        try:
            values[name] = known[name].check(value)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from None
    return {**values, **({SETTINGS: {name: _text(value) for name, value in settings.items()}} if settings else {})}


def overridden(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file with those that were given in their place.

    Args:
        values: As :func:`read` returns them.
        given: By name likewise.
    """
    replaced = {name for names in ONE_OF if any(name in given for name in names) for name in names}
    kept = {name: value for name, value in values.items() if name not in replaced}
    settings = {**values.get(SETTINGS, {}), **given.get(SETTINGS, {})}
    return {**kept, **given, SETTINGS: settings}


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return shown(value)
    # JSON's texts are TOML's, but for a character that both may escape
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _plain(text: str) -> bool | int | float | str:
    """Read a number or a truth value, where writing it gives the same text."""
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        with suppress(ValueError):
            number: int | float = kind(text)
            # not infinity, which begins with a letter
            if shown(number) == text and text.lstrip("-")[:1].isdigit():
                return number
    return text


def _text(value: Any) -> str:
    return ",".join(map(_text, value)) if isinstance(value, list) else shown(value)
