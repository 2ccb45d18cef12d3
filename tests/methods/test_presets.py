"""Every default and every preset of every method, with its source."""

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

TRAINING: Mapping[str, tuple[Any, str]] = {
    "steps": (3000, OWN),
    "batch_size": (64, OWN),
    "lr": (1e-3, OWN),
    "schedule": ("cosine", OWN),
    "optimizer": ("adam", OWN),
    "weight_decay": (0.0, OWN),
    "sliced_rate": (0.1, OWN),
}
"""Length and rate of the student's training: the same for all that train it as a whole."""

BESIDE_CLASSES: Mapping[str, tuple[Any, str]] = {
    **TRAINING,
    "ce_weight": (0.0, f"{OWN}: the term alone, for combinations; presets bring the article's cross-entropy"),
}

DEFAULTS: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    "netgraft": {
        "block_steps": ((300,), OWN),
        "join_steps": (1000, OWN),
        "steps": (None, OWN),
        "batch_size": (64, OWN),
        "block_lr": ((1e-3,), OWN),
        "adapter_lr": (1e-3, OWN),
        "join_lr": (1e-3, OWN),
        "schedule": ("cosine", OWN),
        "whole_epochs": (False, OWN),
        "objective": ("mse", "Ba and Caruana, NeurIPS 2014, equation 1; the article's is normalized"),
        "sliced_rate": (0.1, OWN),
        "block_targets": ("auto", f"{OWN} where the start is solved; else Shen et al., section Block Grafting"),
        "joins": ("front-to-back", "Shen et al., section Network Grafting"),
        "adapters": ("trained", "Shen et al., section Block Grafting"),
        "adapter_bias": (False, f"{OWN}, so that folding is exact"),
        "adapter_init": ("fan-in", "PyTorch's default"),
        "maps_weight": (0.0, OWN),
        "temperature": (4.0, f"{REPDISTILLER}: kd_T"),
    },
    "kd": {
        **TRAINING,
        "temperature": (4.0, f"{REPDISTILLER}: kd_T"),
        "kd_weight": (0.9, f"{REPDISTILLER}: -a"),
        "ce_weight": (0.1, f"{REPDISTILLER}: -r"),
    },
    "fitnets": {
        **BESIDE_CLASSES,
        "hint_steps": (1000, OWN),
        "hint_reduction": ("element", f"{REPDISTILLER}: MSELoss; the article's is the sum"),
        "hint_regressor": ("linear", "Romero et al., section 2.2, without its last ReLU"),
        "hint_weight": (0.0, "Romero et al.: hints have a phase of their own"),
    },
    "at": {
        **BESIDE_CLASSES,
        "at_weight": (1000.0, "the authors' program: beta"),
        "at_power": (2.0, "Zagoruyko and Komodakis, section 3.1"),
        "at_form": ("code", "the authors' program"),
    },
    "at-gradient": {**BESIDE_CLASSES, "gradient_weight": (1.0, f"{OWN}: the article names no beta")},
    "nst": {
        **BESIDE_CLASSES,
        "nst_weight": (50.0, "arXiv 1707.01219: beta 50"),
        "nst_kernel": ("polynomial", "arXiv 1707.01219, with degree 2 and constant 0"),
        "nst_blocks": ("last", OWN),
    },
    "ft": {
        **BESIDE_CLASSES,
        "ft_weight": (500.0, "Kim et al.: beta"),
        "ft_rate": (0.5, "Kim et al.: k"),
        "ft_reduction": ("element", "the authors' program"),
        "ft_form": ("factor", "Kim et al., section 3.2"),
        "ft_norm": (True, f"{OWN}: the authors' program has none"),
        "paraphraser_steps": (500, OWN),
    },
    "ab": {
        **BESIDE_CLASSES,
        "ab_steps": (1000, OWN),
        "ab_margin": (1.0, "the authors' program"),
        "ab_responses": ("block-end", OWN),
        "ab_reduction": ("element", OWN),
    },
    "fsp": {**BESIDE_CLASSES, "fsp_steps": (1000, OWN), "fsp_reduction": ("element", OWN)},
    "rkd": {
        **BESIDE_CLASSES,
        "distance_weight": (25.0, "Park et al., section 4"),
        "angle_weight": (50.0, "Park et al., section 4"),
    },
    "ban": {
        **TRAINING,
        "generations": (3, "Furlanello et al.: up to three"),
        "temperature": (1.0, "Furlanello et al.: none"),
        "ce_weight": (1.0, "Furlanello et al.: labels and soft targets"),
    },
    "dml": {
        **TRAINING,
        "peers": (2, "Zhang et al.: two networks"),
        "mutual_weight": (1.0, "Zhang et al.: a plain sum"),
    },
    "one": {
        **TRAINING,
        "branches": (3, "the authors' program"),
        "temperature": (3.0, "the authors' program: T"),
        "rampup": (0.267, "the authors' program: 80 of 300 epochs"),
    },
    "byot": {
        **TRAINING,
        "soft_weight": (0.3, "the first author's program: loss_coefficient"),
        "feature_weight": (0.03, "its later version: feature_loss_coefficient"),
        "temperature": (3.0, "the first author's program: temperature"),
    },
    "supervised": TRAINING,
    "none": {"steps": (100, OWN), "batch_size": (64, OWN)},
}
"""Of each method every hyper-parameter: its default, and where that stands."""

PRESETS: Mapping[tuple[str, str], tuple[Mapping[str, Any], str, str]] = {
    ("netgraft", "default"): ({}, "rich", OWN),
    ("netgraft", "thorough"): ({"objective": "kl", "join_steps": 4000}, "rich", OWN),
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


@pytest.mark.parametrize("name", METHODS)
def test_a_default_is_what_the_table_says(name: str) -> None:
    assert vars(find(name)()) == {each: value for each, (value, _) in DEFAULTS[name].items()}
    assert all(source for _, source in DEFAULTS[name].values())


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
