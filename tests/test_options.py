"""Options: declared once as fields, read from text, checked when they come from a file, and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from netgraft.errors import RequestError
from netgraft.jobs.options import DistillOptions
from netgraft.options import asked, build, declared, group, option, recorded, required, shown


@dataclass(frozen=True)
class Oven:
    """A group in a group."""

    degrees: int = option(180, "Of the air.", minimum=50, recorded=True)
    fan: bool = option(False, "Whether the air moves.", flag="--with-fan")


@dataclass(frozen=True)
class Kitchen:
    oven: Oven = group(Oven)
    knives: int | None = option(None, "All, if not told.", scope="run")


@dataclass(frozen=True)
class Recipe:
    name: str = required("Of the dish.")
    minutes: tuple[int, ...] = option((10, 20), "Of each step.")
    shares: tuple[float, ...] = option((0.5,), "Of each guest.", recorded=True)
    kitchen: Kitchen = group(Kitchen)
    taste: str = option("sweet", "Which one.", choices=("sweet", "salty"), scope="pair", recorded=True)
    salt_grams: float = option(1.5, "In all.")
    book: Path | None = option(None, "Where it stands.", recorded=True)
    notes: Mapping[str, str] = field(default_factory=dict)
    """Is a field, and no option."""


# --- declared


def test_options_stand_in_the_order_of_their_fields_and_a_groups_where_it_stands() -> None:
    assert [*declared(Recipe)] == [
        "name",
        "minutes",
        "shares",
        "degrees",
        "fan",
        "knives",
        "taste",
        "salt_grams",
        "book",
    ]


def test_an_option_says_all_that_its_field_does() -> None:
    known = declared(Recipe)
    assert [option.name for option in known.values()] == [*known]
    assert known["degrees"].meaning == "Of the air."
    assert known["taste"].choices == ("sweet", "salty")
    assert known["knives"].choices == ()
    assert {name: option.minimum for name, option in known.items() if option.minimum is not None} == {"degrees": 50}
    assert {name: option.scope for name, option in known.items() if option.scope} == {"knives": "run", "taste": "pair"}
    assert [name for name, option in known.items() if option.recorded] == ["shares", "degrees", "taste", "book"]


def test_none_is_a_default_and_no_type() -> None:
    known = declared(Recipe)
    assert (known["knives"].type, known["book"].type) == (int, Path)
    assert (known["knives"].default, known["book"].default) == (None, None)
    assert known["minutes"].type == tuple[int, ...]


def test_flags_follow_from_names_unless_they_are_given() -> None:
    flags = {name: option.flag for name, option in declared(Recipe).items()}
    assert flags["salt_grams"] == "--salt-grams"
    assert flags["degrees"] == "--degrees"
    assert flags["fan"] == "--with-fan"


def test_only_what_has_no_default_is_required() -> None:
    known = declared(Recipe)
    assert [name for name, option in known.items() if option.required] == ["name"]
    assert known["name"].default is dataclasses.MISSING


# --- read


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("name", "1,5", "1,5"),
        ("degrees", "200", 200),
        ("degrees", "-7", -7),
        ("knives", "3", 3),
        ("salt_grams", "2.5e-1", 0.25),
        ("salt_grams", "2", 2.0),
        ("minutes", "5", (5,)),
        ("minutes", "5,6,7", (5, 6, 7)),
        ("shares", "1,0.25", (1.0, 0.25)),
        ("taste", "salty", "salty"),
        ("book", "shelf/one", Path("shelf/one")),
        *(("fan", text, True) for text in ("true", "Yes", "1", "TRUE")),
        *(("fan", text, False) for text in ("false", "no", "0", "No")),
    ],
)
def test_text_is_read_as_the_fields_type(name: str, text: str, value: object) -> None:
    read = declared(Recipe)[name].read(text)
    assert repr(read) == repr(value), "1 and 1.0 are equal, as are 1 and True"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("degrees", "hot", "degrees must be like its default 180, not 'hot'"),
        ("degrees", "180.5", "degrees must be like its default 180, not '180.5'"),
        ("degrees", "", "degrees must be like its default 180, not ''"),
        ("minutes", "1,,2", "minutes must be like its default 10,20, not '1,,2'"),
        ("minutes", "1 2", "minutes must be like its default 10,20, not '1 2'"),
        ("shares", "0.5,half", "shares must be like its default 0.5, not '0.5,half'"),
        ("fan", "perhaps", "fan must be like its default False, not 'perhaps'"),
        ("taste", "bitter", "taste must be one of sweet, salty, not 'bitter'"),
        ("taste", "Sweet", "taste must be one of sweet, salty, not 'Sweet'"),
    ],
)
def test_text_that_is_no_value_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        declared(Recipe)[name].read(text)
    assert str(refused.value) == message


# --- check


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("name", "bread", "bread"),
        ("degrees", 200, 200),
        ("fan", True, True),
        ("salt_grams", 0.5, 0.5),
        ("salt_grams", 2, 2.0),
        ("minutes", [1, 2], (1, 2)),
        ("shares", [1, 0.5], (1.0, 0.5)),
        ("taste", "salty", "salty"),
        ("book", "shelf/one", Path("shelf/one")),
    ],
)
def test_a_files_value_of_the_right_type_is_taken(name: str, value: object, expected: object) -> None:
    assert repr(declared(Recipe)[name].check(value)) == repr(expected), "1 and 1.0 are equal, as are 1 and True"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 5),
        ("degrees", "200"),
        ("degrees", 200.5),
        ("degrees", True),
        ("degrees", [200]),
        ("fan", "true"),
        ("fan", 1),
        ("salt_grams", "0.5"),
        ("minutes", 5),
        ("minutes", ["5"]),
        ("minutes", [1.5]),
        ("shares", {"a": 1.0}),
        ("taste", 1),
        ("book", 7),
    ],
)
def test_a_files_value_of_another_type_is_refused_in_a_sentence(name: str, value: object) -> None:
    with pytest.raises(RequestError) as refused:
        declared(Recipe)[name].check(value)
    message = str(refused.value)
    assert message.startswith(f"{name} can't be {value!r}: expected ")
    assert "\n" not in message
    assert not message.endswith(".")


def test_a_files_value_that_is_no_choice_is_refused() -> None:
    with pytest.raises(RequestError, match="taste must be one of sweet, salty, not 'bitter'"):
        declared(Recipe)["taste"].check("bitter")


# --- build and recorded


def test_what_is_not_given_has_its_default() -> None:
    recipe = build(Recipe, {"name": "bread"})
    assert recipe == Recipe(name="bread")
    assert recipe.kitchen == Kitchen(Oven(degrees=180, fan=False), knives=None)
    assert recipe.notes == {}


def test_values_go_to_the_groups_that_they_belong_to() -> None:
    recipe = build(Recipe, {"name": "bread", "fan": True, "knives": 2, "minutes": (1,)})
    assert recipe == Recipe(name="bread", minutes=(1,), kitchen=Kitchen(Oven(fan=True), knives=2))


def test_a_whole_group_may_be_given() -> None:
    kitchen = Kitchen(Oven(degrees=90))
    assert build(Recipe, {"name": "bread", "kitchen": kitchen}).kitchen is kitchen


def test_a_value_for_no_field_is_left_aside_and_a_required_one_must_be_given() -> None:
    assert build(Oven, {"degrees": 60, "knives": 2}) == Oven(60)
    with pytest.raises(TypeError, match="name"):
        build(Recipe, {})


def test_recorded_are_the_marked_ones_of_all_groups_as_they_were_asked_for() -> None:
    recipe = build(Recipe, {"name": "bread", "degrees": 60, "fan": True, "taste": "salty"})
    assert recorded(recipe) == {"shares": (0.5,), "degrees": 60, "taste": "salty", "book": None}


def test_asked_for_is_what_differs_from_the_defaults_as_json_writes_it() -> None:
    recipe = build(Recipe, {"name": "bread", "fan": True, "salt_grams": 1.5, "knives": 3, "book": Path("a/b")})
    assert asked(recipe) == {"name": "bread", "fan": True, "knives": 3, "book": "a/b"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (False, "false"), ((1, 2), "1,2"), ((0.001,), "0.001"), (1.5, "1.5"), ("sweet", "sweet")],
)
def test_a_default_is_shown_as_it_can_be_read(value: object, text: str) -> None:
    assert shown(value) == text


# --- of netgraft distill


def test_every_option_of_distill_has_a_meaning_and_a_flag_of_its_own() -> None:
    known = declared(DistillOptions)
    assert {"data", "teacher", "student", "method", "seed", "out", "precision", "init", "inherit"} <= set(known)
    for name, each in known.items():
        assert each.meaning.endswith("."), name
        assert each.flag.startswith("--"), name
        assert not each.choices or each.default in (None, *each.choices), name
    flags = [each.flag for each in known.values()]
    assert len(flags) == len(set(flags))


def test_what_distill_shows_as_a_default_can_be_read_again() -> None:
    for each in declared(DistillOptions).values():
        if each.default is not None and not each.required:
            assert each.read(shown(each.default)) == each.default, each.name


def test_distill_without_values_is_all_defaults() -> None:
    options: Any = build(DistillOptions, {})
    assert options == DistillOptions()
    assert recorded(options)["seed"] == 0
