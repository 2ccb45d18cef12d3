"""Methods by name: which there are, which can be combined, and which presets they have."""

from __future__ import annotations

import pytest

from netgraft.errors import RequestError
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose, find


@pytest.mark.parametrize(
    ("method", "preset", "message"),
    [("netgrafts", "default", "there is no method 'netgrafts'; choose from"), ("netgraft", "best", "no preset 'best'")],
)
def test_unknown_methods_and_presets_are_refused(method: str, preset: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        choose(method, preset, Budget(100, 10))


@pytest.mark.parametrize("name", ["kd+att", "att+kd", "kd+", "+", "kd at"])
def test_unknown_parts_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RequestError, match=r"there is no method .*; choose from netgraft, kd, fitnets"):
        find(name)


@pytest.mark.parametrize("other", ["netgraft", "ban", "dml", "one", "none"])
def test_methods_without_terms_for_the_student_are_refused(other: str) -> None:
    for name in (f"kd+{other}", f"{other}+kd"):
        with pytest.raises(RequestError, match=f"{other} can't be combined"):
            find(name)


@pytest.mark.parametrize("name", ["kd+kd", "at+kd+at"])
def test_a_method_named_twice_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="names a method twice"):
        find(name)


def test_a_combination_has_the_default_preset_alone() -> None:
    assert [*find("kd+at").presets] == ["default"]
    with pytest.raises(RequestError, match=r"kd\+at has no preset 'paper'; choose from default"):
        choose("kd+at", "paper", Budget(4, 10))
