"""Hyper-parameters: described, read from text, and checked before anything runs."""

from __future__ import annotations

from dataclasses import make_dataclass, replace

import pytest

from netgraft.errors import RequestError
from netgraft.methods.hyperparameters import hyperparameter, parse
from netgraft.methods.method import Budget
from netgraft.methods.registry import METHODS, NetGraft, choose, find
from netgraft.options import declared
from tests.support.method_pairs import method, pairing


def test_every_hyperparameter_is_described() -> None:
    for known in METHODS:
        described = declared(find(known))
        assert described
        for name, option in described.items():
            assert option.meaning, name
            assert getattr(find(known)(), name) == option.default


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("block_steps", "300", (300,)),
        ("block_steps", "1,2,3", (1, 2, 3)),
        ("block_lr", "1e-3,0.5", (1e-3, 0.5)),
        ("join_steps", "7", 7),
        ("join_lr", "2.5e-4", 2.5e-4),
        ("schedule", "one-cycle", "one-cycle"),
        ("whole_epochs", "true", True),
        ("whole_epochs", "No", False),
    ],
)
def test_text_becomes_the_fields_type(name: str, text: str, value: object) -> None:
    parsed = parse(NetGraft, name, text)
    assert parsed == value
    assert type(parsed) is type(value)
    method = choose("netgraft", "default", Budget(100, 10), {name: text}).method
    assert getattr(method, name) == value
    assert replace(NetGraft(), **{name: value}) == method  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("join_steps", "many", "join_steps must be like its default 1000, not 'many'"),
        ("join_steps", "1.5", "must be like its default"),
        ("block_steps", "1,,2", "must be like its default"),
        ("block_steps", "", "must be like its default"),
        ("block_lr", "fast", "must be like its default"),
        ("whole_epochs", "perhaps", "must be like its default False, not 'perhaps'"),
        ("schedule", "exp", "schedule must be one of constant, cosine, one-cycle, not 'exp'"),
    ],
)
def test_text_that_is_no_value_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        choose("netgraft", "default", Budget(100, 10), {name: text})


def test_an_unknown_hyper_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"no hyper-parameter 'stepz'.*block_steps"):
        choose("netgraft", "default", Budget(100, 10), {"stepz": "3"})


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("at", {"at_power": 0.5}, "power must be a finite number of at least 1, not 0.5"),
        ("ab", {"ab_margin": 0}, "margin must be a finite number above 0"),
        ("ft", {"ft_rate": 0}, "rate must be a finite number above 0"),
        ("kd", {"temperature": 0}, "temperature must be positive"),
        ("kd", {"temperature": "inf"}, "temperature must be a finite number, not inf"),
        ("ban", {"temperature": 0}, "temperature must be a finite number above 0"),
        ("one", {"temperature": -1}, "temperature must be a finite number above 0"),
        ("byot", {"temperature": "nan"}, "temperature must be a finite number, not nan"),
        ("fitnets", {"hint_steps": -3}, "steps of a phase must be at least 0, not -3"),
        ("kd", {"steps": -1}, "steps and weight_decay at least 0"),
        ("kd", {"lr": 0}, "rates must be positive"),
        ("at", {"at_weight": -1}, "at_weight can't be negative"),
        ("dml", {"mutual_weight": -0.5}, "mutual_weight can't be negative"),
        ("ban", {"ce_weight": -1}, "ce_weight can't be negative"),
        ("none", {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(
    name: str, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint):
        method(name, **settings).plan(pairing())


@pytest.mark.parametrize(("default", "choices"), [(3, ()), ("a", ("a", "b"))])
def test_a_hyper_parameter_is_a_field_that_describes_itself(default: object, choices: tuple[str, ...]) -> None:
    declared_field = hyperparameter(default, "what it is", choices=choices)
    made = make_dataclass("Made", [("value", type(default), declared_field)])
    assert made().value == default
    option = declared(made)["value"]
    assert (option.default, option.meaning, tuple(option.choices)) == (default, "what it is", choices)
