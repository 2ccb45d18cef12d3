"""Every method by its name, and combinations of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from netgraft.errors import RequestError
from netgraft.methods import ab as _ab
from netgraft.methods import at as _at
from netgraft.methods import at_gradient as _at_gradient
from netgraft.methods import ban as _ban
from netgraft.methods import byot as _byot
from netgraft.methods import dml as _dml
from netgraft.methods import fitnets as _fitnets
from netgraft.methods import fsp as _fsp
from netgraft.methods import ft as _ft
from netgraft.methods import kd as _kd
from netgraft.methods import netgraft as _netgraft
from netgraft.methods import none as _none
from netgraft.methods import nst as _nst
from netgraft.methods import one as _one
from netgraft.methods import rkd as _rkd
from netgraft.methods import supervised as _supervised
from netgraft.methods.ab import AB
from netgraft.methods.at import AT
from netgraft.methods.at_gradient import GradientAT
from netgraft.methods.ban import BAN
from netgraft.methods.byot import BYOT
from netgraft.methods.combination import combine
from netgraft.methods.dml import DML
from netgraft.methods.fitnets import FitNets
from netgraft.methods.fsp import FSP
from netgraft.methods.ft import FT
from netgraft.methods.hyperparameters import parse
from netgraft.methods.kd import KD
from netgraft.methods.method import Budget, Preset
from netgraft.methods.netgraft import NetGraft
from netgraft.methods.none import Untrained
from netgraft.methods.nst import NST
from netgraft.methods.one import ONE
from netgraft.methods.rkd import RKD
from netgraft.methods.supervised import Supervised

__all__ = [
    "AB",
    "AT",
    "BAN",
    "BYOT",
    "DML",
    "FSP",
    "FT",
    "KD",
    "METHODS",
    "NST",
    "ONE",
    "RKD",
    "FitNets",
    "GradientAT",
    "NetGraft",
    "RegisteredMethod",
    "Supervised",
    "Untrained",
    "choose",
    "find",
]


@dataclass(frozen=True)
class RegisteredMethod:
    """A method's dataclass and its presets."""

    kind: type
    presets: Mapping[str, Callable[[Budget], Preset]]


METHODS: dict[str, RegisteredMethod] = {
    "netgraft": RegisteredMethod(NetGraft, _netgraft.PRESETS),
    "kd": RegisteredMethod(KD, _kd.PRESETS),
    "fitnets": RegisteredMethod(FitNets, _fitnets.PRESETS),
    "at": RegisteredMethod(AT, _at.PRESETS),
    "at-gradient": RegisteredMethod(GradientAT, _at_gradient.PRESETS),
    "nst": RegisteredMethod(NST, _nst.PRESETS),
    "ft": RegisteredMethod(FT, _ft.PRESETS),
    "ab": RegisteredMethod(AB, _ab.PRESETS),
    "fsp": RegisteredMethod(FSP, _fsp.PRESETS),
    "rkd": RegisteredMethod(RKD, _rkd.PRESETS),
    "ban": RegisteredMethod(BAN, _ban.PRESETS),
    "dml": RegisteredMethod(DML, _dml.PRESETS),
    "one": RegisteredMethod(ONE, _one.PRESETS),
    "byot": RegisteredMethod(BYOT, _byot.PRESETS),
    "supervised": RegisteredMethod(Supervised, _supervised.PRESETS),
    "none": RegisteredMethod(Untrained, _none.PRESETS),
}


def find(name: str) -> RegisteredMethod:
    """Return a method, or the combination of several whose names are joined by ``+``.

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
    return RegisteredMethod(*combine({one: METHODS[one].kind for one in names}))


def choose(name: str, preset: str, budget: Budget, settings: Mapping[str, str] | None = None) -> Preset:
    """Return method ``name`` with the hyper-parameters of a preset, some of them set from text.

    Raises:
        RequestError: No such method, preset or hyper-parameter, or a text that is no value.
    """
    entry = find(name)
    if preset not in entry.presets:
        raise RequestError(f"{name} has no preset {preset!r}; choose from {', '.join(entry.presets)}")
    chosen = entry.presets[preset](budget)
    values: dict[str, Any] = {key: parse(entry.kind, key, text) for key, text in (settings or {}).items()}
    return replace(chosen, method=replace(chosen.method, **values))  # type: ignore[type-var]
