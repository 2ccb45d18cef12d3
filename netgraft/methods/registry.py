"""Every method by its name, and combinations of several."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from netgraft.data.view_policy import VIEW_POLICIES, ViewPolicy
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
from netgraft.methods.method import Budget, Method, Preset
from netgraft.methods.netgraft import NetGraft
from netgraft.methods.none import Untrained
from netgraft.methods.nst import NST
from netgraft.methods.one import ONE
from netgraft.methods.rkd import RKD
from netgraft.methods.supervised import Supervised
from netgraft.options import declared

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
            near = difflib.get_close_matches(one, METHODS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RequestError(f"there is no method {one!r}; choose from {', '.join(METHODS)}, or join some by +{hint}")
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


def check_names(
    method: str | Method | type[Method], given: Mapping[str, Any], *, own: Collection[str] = (), what: str = ""
) -> None:
    """Make sure that values are given for hyper-parameters that a method has.

    Args:
        method: A name, a class or an object.
        given: Values by name.
        own: Other names that the caller takes, for the advice.
        what: Of the caller.

    Raises:
        RequestError: There is no such name; says which is nearest.
    """
    kind = _kind_of(method)
    known = [*declared(kind)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *own], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            called = method if isinstance(method, str) else kind.__name__
            which = f"{what} has no option, and {called} no" if what else f"{called} has no"
            raise RequestError(
                f"{which} hyper-parameter {name!r}; {hint}hyper-parameters of {called} are {', '.join(known)}"
            )


def _kind_of(method: str | Method | type[Method]) -> type[Method]:
    if isinstance(method, str):
        return find(method)
    kind = method if isinstance(method, type) else type(method)
    if not hasattr(kind, "presets") or not hasattr(kind, "plan"):
        raise RequestError(
            f"expected a method by its name, its class or an object of it, got {_brief(method)}; choose from "
            f"{', '.join(METHODS)}"
        )
    return kind


def _brief(value: object) -> str:
    return repr(value) if len(repr(value)) <= 60 else type(value).__name__


def configure(
    method: str | Method | type[Method],
    preset: str | Preset,
    budget: Budget,
    hyperparameters: Mapping[str, Any],
) -> ChosenMethod:
    """Return a method with the hyper-parameters of a preset, some of them given as values.

    Args:
        method: A name, as for :func:`find`, or a class, both of which have presets; or an object, which is taken as it
            is, with rich views.
        preset: One of the method's by its name, or an object.
        budget: How many images and classes there are.
        hyperparameters: By their names; they win.

    Raises:
        RequestError: No such method, preset or hyper-parameter, or a value of another type or out of range.
    """
    check_names(method, hyperparameters)
    kind = _kind_of(method)
    if not isinstance(method, str | type):
        if preset != "default":
            raise RequestError(
                f"expected a method by its name or class where a preset is given, got an object, {_brief(method)}; "
                "leave preset out, or give the name"
            )
        method = replace(method, **hyperparameters) if hyperparameters else method
        return ChosenMethod(method, VIEW_POLICIES["rich"], "auto")
    if isinstance(preset, str):
        if preset not in kind.presets:
            raise RequestError(f"{method} has no preset {preset!r}; choose from {', '.join(kind.presets)}")
        preset = kind.presets[preset]
    if not isinstance(preset, Preset):
        raise RequestError(f"expected a preset by its name or as an object, got {_brief(preset)}; give one of both")
    values = {**preset.hyperparameters(budget), **hyperparameters}
    return ChosenMethod(replace(kind(), **values), preset.views, preset.init)


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
    given = {key: parse(kind, key, text) for key, text in (settings or {}).items()}
    return configure(name, preset, budget, given)
