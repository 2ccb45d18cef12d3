"""Every method by its name, and combinations of several."""

from __future__ import annotations

from collections.abc import Mapping
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
from netgraft.methods.combination import about_all, combine
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

METHODS: Mapping[str, type[Method]] = {
    "netgraft": NetGraft,
    "kd": KD,
    "fitnets": FitNets,
    "at": AT,
    "at-gradient": GradientAT,
    "nst": NST,
    "ft": FT,
    "ab": AB,
    "fsp": FSP,
    "rkd": RKD,
    "ban": BAN,
    "dml": DML,
    "one": ONE,
    "byot": BYOT,
    "supervised": Supervised,
    "none": Untrained,
}


@lru_cache
def find(name: str) -> type[Method]:
    """Return a method, or the combination of several whose names are joined by ``+``.

    Their order means nothing but the order of phases and hyper-parameters.

    Args:
        name: One of ``METHODS``, or several, such as ``kd+at``.

    Raises:
        RequestError: There is no such method, or it can't be combined.
    """
    names = name.split("+")
    for one in names:
        if one not in METHODS:
            raise RequestError(f"there is no method {one!r}; choose from {', '.join(METHODS)}, or join some by +")
    if len(names) == 1:
        return METHODS[name]
    if len(set(names)) < len(names):
        raise RequestError(f"{name!r} names a method twice; set its weight instead")
    parts: dict[str, type[Baseline]] = {}
    for one in names:
        kind = METHODS[one]
        if not issubclass(kind, Baseline):
            raise RequestError(f"{one} can't be combined: it adds no terms to the student's training")
        parts[one] = kind
    return combine(parts, about_all(f"The terms of {', '.join(names)} added.", [kind.about for kind in parts.values()]))


def name_of(method: Method) -> str:
    """Return the name of a method's class in ``METHODS``; of another class, such as a combination, its own."""
    kind = type(method)
    return next((name for name, known in METHODS.items() if known is kind), kind.__qualname__)


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
