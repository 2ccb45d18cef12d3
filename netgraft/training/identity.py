"""What identifies a run: canonical JSON of its fields, with a version number.

A field that has its default is left out, so a run that was saved before there was such a field goes on. No sentence and
no class name is part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

VERSION = 1
"""Goes up when a default changes, or when the same fields make another result: saved runs can't go on then."""


def described(value: object) -> Any:
    """Reduce a value to JSON; a dataclass to those of its fields that differ from their defaults.

    Raises:
        TypeError: It holds something else than dataclasses, mappings, sequences, paths and plain values.
    """
    if is_dataclass(value) and not isinstance(value, type):
        values = {f.name: getattr(value, f.name) for f in fields(value)}
        changed = [f.name for f in fields(value) if values[f.name] != _default(f)]
        return {name: described(values[name]) for name in changed}
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} can't be a part of a run's identity")


def _default(declared: Field[Any]) -> object:
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def fingerprint(**parts: object) -> str:
    """Return the SHA-256, in hexadecimal, of the canonical JSON of everything that decides a result."""
    content = {"version": VERSION, **described(parts)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
