"""Distillation methods, one a file: frozen dataclasses of hyper-parameters that make plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from netgraft.errors import RequestError
from netgraft.hyperparameters import parse
from netgraft.methods import netgraft as _netgraft
from netgraft.methods.netgraft import NetGraft
from netgraft.phases import Budget, Preset

__all__ = ["METHODS", "Entry", "NetGraft", "choose"]


@dataclass(frozen=True)
class Entry:
    """A method's dataclass and its presets."""

    kind: type
    presets: Mapping[str, Callable[[Budget], Preset]]


METHODS: dict[str, Entry] = {
    "netgraft": Entry(NetGraft, _netgraft.PRESETS),
}


def choose(name: str, preset: str, budget: Budget, settings: Mapping[str, str] | None = None) -> Preset:
    """Return method ``name`` with the hyper-parameters of a preset, some of them set from text.

    Raises:
        RequestError: No such method, preset or hyper-parameter, or a text that is no value.
    """
    if name not in METHODS:
        raise RequestError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
    entry = METHODS[name]
    if preset not in entry.presets:
        raise RequestError(f"{name} has no preset {preset!r}; choose from {', '.join(entry.presets)}")
    chosen = entry.presets[preset](budget)
    values: dict[str, Any] = {key: parse(entry.kind, key, text) for key, text in (settings or {}).items()}
    return replace(chosen, method=replace(chosen.method, **values))  # type: ignore[type-var]
