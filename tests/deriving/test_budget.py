"""Budgets as people write them."""

from __future__ import annotations

import pytest

from netgraft.deriving.budget import Amount, budget_of, parse_budget, series_of
from netgraft.errors import RequestError


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("macs=0.5", [("macs", 0.5, True)]),
        ("0.5", [("macs", 0.5, True)]),
        (".25", [("macs", 0.25, True)]),
        ("parameters=2.5M", [("parameters", 2.5e6, False)]),
        ("parameters=300K", [("parameters", 3e5, False)]),
        ("macs=1G", [("macs", 1e9, False)]),
        ("macs=12345", [("macs", 12345, False)]),
        ("macs=2.5e6", [("macs", 2.5e6, False)]),
        (" macs = 0.5 , parameters = 0.25 ", [("macs", 0.5, True), ("parameters", 0.25, True)]),
    ],
)
def test_what_is_read(text: str, amounts: list[tuple[str, float, bool]]) -> None:
    assert list(parse_budget(text)) == [Amount(*amount) for amount in amounts]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("flops=0.5", "a budget is of macs, parameters or ms, not of 'flops'"),
        ("=0.5", "a budget is of macs, parameters or ms, not of ''"),
        ("macs=half", "a budget's amount must be a number, not 'half'"),
        ("", "a budget's amount must be a number, not ''"),
        ("macs=", "a budget's amount must be a number, not ''"),
        ("macs=0.5,", "a budget has each unit once"),
        ("macs=-0.5", "a budget's amount must be a number, not '-0.5'"),
        ("macs=nan", "a budget's amount must be a number, not 'nan'"),
        ("macs=50%", "a budget's amount must be a number, not '50%'"),
        ("macs=0.5m", "a budget's amount must be a number, not '0.5m'"),
        ("macs=1.5", "a fraction of the teacher's macs lies between 0 and 1, not at 1.5"),
        ("macs=1", "a fraction of the teacher's macs lies between 0 and 1, not at 1"),
        ("macs=0", "a fraction of the teacher's macs lies between 0 and 1, not at 0"),
        ("parameters=500", "a fraction of the teacher's parameters lies between 0 and 1, not at 500"),
        ("macs=0.5,macs=0.3", "a budget has each unit once, not 'macs=0.5,macs=0.3'"),
        ("0.5,0.3", "a budget has each unit once, not '0.5,0.3'"),
    ],
)
def test_what_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_budget(text)

    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith("; give a fraction such as macs=0.5, or a number such as parameters=2.5M")
    assert "\n" not in str(caught.value)


def test_amounts_may_be_numbers() -> None:
    assert budget_of({"macs": 0.5, "parameters": "2M"}) == (
        Amount("macs", 0.5, of_teacher=True),
        Amount("parameters", 2e6, of_teacher=False),
    )
    assert budget_of({"macs": 2_500_000}) == (Amount("macs", 2.5e6, of_teacher=False),)
    assert budget_of({"macs": 1e-05}) == (Amount("macs", 1e-5, of_teacher=True),)


def test_limits() -> None:
    assert Amount("macs", 0.5, of_teacher=True).limit(200) == 100
    assert Amount("macs", 50, of_teacher=False).limit(200) == 50
    for value in (200, 1e9):
        with pytest.raises(RequestError, match=r"^the teacher has 200 macs, which is within the budget of .* already"):
            Amount("macs", value, of_teacher=False).limit(200)


@pytest.mark.parametrize("text", ["0.5,", ",0.5", "0.5,half", "0.5,1.5", "0.5,0", "0.5,0.5"])
def test_a_series_with_a_budget_that_can_not_be_read_is_not_begun(text: str) -> None:
    with pytest.raises(RequestError):
        series_of(text)


def test_a_series_is_of_bare_fractions() -> None:
    assert series_of("0.7, 0.5") == ("macs=0.7", "macs=0.5")
    assert series_of("macs=0.5,parameters=0.3") == ("macs=0.5,parameters=0.3",)
