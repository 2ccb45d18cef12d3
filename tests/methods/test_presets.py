"""Every preset of every method, with its source. The defaults stand in tests/training/test_identity.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.methods.method import Budget
from netgraft.methods.registry import METHODS, choose, find

BUDGET = Budget(images=100, classes=10)

OWN = "this project's"
REPDISTILLER = "RepDistiller's program (Tian, Krishnan and Isola, ICLR 2020)"

PRESETS: Mapping[tuple[str, str], tuple[Mapping[str, Any], str, str]] = {
    ("netgraft", "default"): ({}, "rich", OWN),
    ("kd", "default"): ({}, "rich", "0.9 and 0.1 as RepDistiller's; temperature 4 as there"),
    ("fitnets", "default"): ({"ce_weight": 1.0}, "rich", OWN),
    ("fitnets", "repdistiller"): (
        {"ce_weight": 1.0, "hint_steps": 0, "hint_weight": 100.0, "hint_regressor": "norm-relu"},
        "rich",
        REPDISTILLER,
    ),
    ("at", "default"): ({"ce_weight": 1.0}, "rich", "the authors' program: beta 1000, mean squares"),
    ("at", "paper"): (
        {"ce_weight": 1.0, "at_form": "paper", "at_weight": 1.0},
        "rich",
        "equation 2; own weight",
    ),
    ("at", "repdistiller"): ({"ce_weight": 1.0}, "rich", REPDISTILLER),
    ("at-gradient", "default"): ({"ce_weight": 1.0}, "rich", "section 3.2"),
    ("nst", "default"): ({"ce_weight": 1.0}, "rich", "arXiv 1707.01219, beta 50"),
    ("nst", "repdistiller"): ({"ce_weight": 1.0, "nst_blocks": "all"}, "rich", REPDISTILLER),
    ("ft", "default"): ({"ce_weight": 1.0}, "rich", "the authors' program: beta 500, means"),
    ("ft", "paper"): (
        {"ce_weight": 1.0, "ft_reduction": "sample", "ft_weight": 1.0},
        "rich",
        "the sum; own weight",
    ),
    ("ft", "repdistiller"): (
        {"ce_weight": 1.0, "ft_weight": 200.0, "ft_form": "energy", "ft_norm": False},
        "rich",
        REPDISTILLER,
    ),
    ("ab", "default"): ({"ce_weight": 1.0}, "rich", OWN),
    ("ab", "repdistiller"): (
        {"ce_weight": 1.0, "ab_responses": "pre-activation", "ab_reduction": "doubling"},
        "rich",
        REPDISTILLER,
    ),
    ("fsp", "default"): ({"ce_weight": 1.0}, "rich", OWN),
    ("fsp", "paper"): ({"ce_weight": 1.0, "fsp_reduction": "sample"}, "rich", "Yim et al., equation 2"),
    ("rkd", "default"): ({"ce_weight": 1.0}, "rich", "Park et al., section 4: 25 and 50"),
    ("rkd", "repdistiller"): ({"ce_weight": 1.0}, "rich", REPDISTILLER),
    ("ban", "default"): ({}, "rich", "Furlanello et al.: labels and soft targets"),
    ("dml", "default"): ({}, "rich", "Zhang et al., equations 5 to 8"),
    ("one", "default"): ({}, "rich", "the authors' program: temperature 3, ramp-up over 80 of 300 epochs"),
    ("byot", "default"): ({}, "rich", "the first author's program: alpha 0.3 without tau^2, lambda 0.03"),
    ("supervised", "default"): ({}, "rich", OWN),
    ("none", "default"): ({}, "rich", OWN),
}
"""What a preset changes, its views, and where that stands. NetGraft's reference has tests of its own."""


def test_every_preset_is_in_the_table() -> None:
    known = {(name, preset) for name in METHODS for preset in find(name).presets}
    assert known == {*PRESETS, ("netgraft", "reference")}
    assert all(source for _, _, source in PRESETS.values())


@pytest.mark.parametrize(("name", "preset"), PRESETS, ids="-".join)
def test_a_preset_is_what_the_table_says(name: str, preset: str) -> None:
    changed, views, _ = PRESETS[name, preset]
    chosen = choose(name, preset, BUDGET)
    defaults = vars(find(name)())
    assert vars(chosen.method) == {**defaults, **changed}
    assert chosen.views == VIEW_POLICIES[views]


def test_a_combination_has_the_defaults_of_its_parts() -> None:
    assert list(find("kd+at").presets) == ["default"]
    assert vars(choose("kd+at", "default", BUDGET).method) == vars(find("kd+at")())
