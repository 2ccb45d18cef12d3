"""Every method by its name, and combinations of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from netgraft.data.view_policy import ViewPolicy
from netgraft.errors import RequestError
from netgraft.methods.ab import AB
from netgraft.methods.at import AT
from netgraft.methods.at_gradient import GradientAT
from netgraft.methods.ban import BAN
from netgraft.methods.baseline import Baseline
from netgraft.methods.byot import BYOT
from netgraft.methods.combination import ONLY_DEFAULT, about_all, combine
from netgraft.methods.dml import DML
from netgraft.methods.fitnets import FitNets
from netgraft.methods.fsp import FSP
from netgraft.methods.ft import FT
from netgraft.methods.hyperparameters import parse
from netgraft.methods.kd import KD
from netgraft.methods.method import Budget, Method
from netgraft.methods.netgraft import NetGraft
from netgraft.methods.none import Untrained
from netgraft.methods.nst import NST
from netgraft.methods.one import ONE
from netgraft.methods.rkd import RKD
from netgraft.methods.supervised import Supervised

METHODS: Mapping[str, tuple[type[Method], ...]] = {
    "netgraft": (NetGraft,),
    "kd": (KD,),
    "fitnets": (KD, FitNets),
    "at": (KD, AT),
    "at-gradient": (KD, GradientAT),
    "nst": (KD, NST),
    "ft": (KD, FT),
    "ab": (KD, AB),
    "fsp": (KD, FSP),
    "rkd": (KD, RKD),
    "ban": (BAN,),
    "dml": (DML,),
    "one": (ONE,),
    "byot": (BYOT,),
    "supervised": (Supervised,),
    "none": (Untrained,),
}
"""Each method, behind what its objective is added to."""


_FOUND: dict[type, str] = {}


def find(name: str) -> type[Method]:
    """Return a method, or the combination of several whose names are joined by ``+``.

    A method that two of them are added to, such as KD, is a part of the combination once.

    Args:
        name: One of ``METHODS``, or several, such as ``kd+at``.

    Raises:
        RequestError: There is no such method, or it can't be combined.
    """
    kind = _find(name)
    _FOUND[kind] = name
    return kind


@lru_cache
def _find(name: str) -> type[Method]:
    names = name.split("+")
    for one in names:
        if one not in METHODS:
            raise RequestError(f"there is no method {one!r}; choose from {', '.join(METHODS)}, or join some by +")
    if len(names) == 1:
        *others, method = METHODS[name]
        if not others:
            return method
        return combine(method.__name__, _baselines([name]), method.about, method.presets)
    if len(set(names)) < len(names):
        raise RequestError(f"{name!r} names a method twice; set its weight instead")
    for one in names:
        if not issubclass(METHODS[one][-1], Baseline):
            raise RequestError(f"{one} can't be combined: it adds no terms to the student's training")
    methods = [METHODS[one][-1] for one in names]
    return combine(
        "+".join(method.__name__ for method in methods),
        _baselines(names),
        about_all(f"The terms of {', '.join(names)} added.", [method.about for method in methods]),
        ONLY_DEFAULT,
    )


def _baselines(names: Sequence[str]) -> list[type[Baseline]]:
    """All that methods are made of, each once."""
    parts = dict.fromkeys(part for name in names for part in METHODS[name])
    return [part for part in parts if issubclass(part, Baseline)]


def name_of(method: Method) -> str:
    """Return the name by which :func:`find` has found a method's class; of another class its own."""
    kind = type(method)
    return _FOUND.get(kind) or next((name for name in METHODS if find(name) is kind), kind.__qualname__)


@dataclass(frozen=True)
class ChosenMethod:
    """A method ready to plan.

    Attributes:
        method: With all its hyper-parameters.
        views: Those that belong to the preset.
        init: How the student starts with the preset; ``auto`` where it names no start.
    """

    method: Method
    views: ViewPolicy
    init: str


def choose(name: str, preset: str, budget: Budget, settings: Mapping[str, str] | None = None) -> ChosenMethod:
    """Return a method with the hyper-parameters of a preset, some of them set from text.

    Args:
        name: As for :func:`find`.
        preset: One of the method's.
        budget: How many images and classes there are.
        settings: Hyper-parameters as text, by their names; they win over the preset's.

    Raises:
        RequestError: No such method, preset or hyper-parameter, a text that is no value, or a value out of range.
    """
    kind = find(name)
    if preset not in kind.presets:
        raise RequestError(f"{name} has no preset {preset!r}; choose from {', '.join(kind.presets)}")
    chosen = kind.presets[preset]
    given: dict[str, Any] = {key: parse(kind, key, text) for key, text in (settings or {}).items()}
    return ChosenMethod(replace(kind(), **{**chosen.hyperparameters(budget), **given}), chosen.views, chosen.init)
