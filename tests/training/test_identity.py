"""What identifies a run: fields, not words; and what makes saved runs go on or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from netgraft.data.view_policy import ViewPolicy
from netgraft.jobs.train import SupervisedTraining
from netgraft.methods.registry import METHODS, find
from netgraft.plan import TrainingSchedule
from netgraft.training.identity import VERSION, described, fingerprint

STUDENT_TRAINING = {
    "steps": 3000,
    "batch_size": 64,
    "lr": 0.001,
    "schedule": "cosine",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "sliced_rate": 0.1,
}
KD = {**STUDENT_TRAINING, "temperature": 4.0, "kd_weight": 0.9, "ce_weight": 0.1}
BESIDE_CLASSES = {**STUDENT_TRAINING, "ce_weight": 0.0}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "netgraft": {
        "block_steps": (300,),
        "join_steps": 1000,
        "steps": None,
        "batch_size": 64,
        "block_lr": (0.001,),
        "adapter_lr": 0.001,
        "join_lr": 0.001,
        "schedule": "cosine",
        "whole_epochs": False,
        "objective": "mse",
        "sliced_rate": 0.1,
        "joins": "front-to-back",
        "adapters": "trained",
        "maps_weight": 0.0,
        "block_targets": "auto",
        "adapter_bias": False,
        "adapter_init": "fan-in",
        "temperature": 4.0,
    },
    "kd": KD,
    "fitnets": {
        **BESIDE_CLASSES,
        "hint_steps": 1000,
        "hint_reduction": "element",
        "hint_regressor": "linear",
        "hint_weight": 0.0,
    },
    "at": {**BESIDE_CLASSES, "at_weight": 1000.0, "at_power": 2.0, "at_form": "code"},
    "at-gradient": {**BESIDE_CLASSES, "gradient_weight": 1.0},
    "nst": {**BESIDE_CLASSES, "nst_weight": 50.0, "nst_kernel": "polynomial", "nst_blocks": "last"},
    "ft": {
        **BESIDE_CLASSES,
        "ft_weight": 500.0,
        "ft_rate": 0.5,
        "ft_reduction": "element",
        "ft_form": "factor",
        "ft_norm": True,
        "paraphraser_steps": 500,
    },
    "ab": {
        **BESIDE_CLASSES,
        "ab_steps": 1000,
        "ab_margin": 1.0,
        "ab_responses": "block-end",
        "ab_reduction": "element",
    },
    "fsp": {**BESIDE_CLASSES, "fsp_steps": 1000, "fsp_reduction": "element"},
    "rkd": {**BESIDE_CLASSES, "distance_weight": 25.0, "angle_weight": 50.0},
    "ban": {**STUDENT_TRAINING, "generations": 3, "temperature": 1.0, "ce_weight": 1.0},
    "dml": {**STUDENT_TRAINING, "peers": 2, "mutual_weight": 1.0},
    "one": {**STUDENT_TRAINING, "branches": 3, "temperature": 3.0, "rampup": 0.267},
    "byot": {**STUDENT_TRAINING, "soft_weight": 0.3, "feature_weight": 0.03, "temperature": 3.0},
    "supervised": STUDENT_TRAINING,
    "none": {"steps": 100, "batch_size": 64},
    "ViewPolicy": {
        "crop_scale": None,
        "pad": 0,
        "hflip": 0.0,
        "colour": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "pool": 16384,
        "arithmetic": "float",
    },
    "TrainingSchedule": {
        "adapter_lr": None,
        "optimizer": "adam",
        "lr_schedule": "constant",
        "weight_decay": 0.0,
        "whole_epochs": False,
    },
    "SupervisedTraining": {
        "epochs": 30,
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
    },
}
"""Defaults as they were when VERSION was 1. An identity leaves them out, so none may change behind its back."""

KINDS: Mapping[str, Any] = {
    **{name: find(name) for name in METHODS},
    **{kind.__name__: kind for kind in (ViewPolicy, TrainingSchedule, SupervisedTraining)},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_default_changes_only_with_the_version(name: str) -> None:
    assert VERSION == 1, "a new version: write down the defaults of now"
    present = {field.name: field.default for field in fields(KINDS[name]) if field.default is not MISSING}
    assert present == DEFAULTS[name], "a changed default needs a new VERSION; a new field is added to the table"


@dataclass(frozen=True)
class Before:
    """A method as it was."""

    steps: int
    lr: float = 0.1


@dataclass(frozen=True)
class Renamed:
    """The same in other words, with a field more."""

    steps: int
    lr: float = 0.1
    warm_up: int = 0

    def __str__(self) -> str:
        return "other words"


def test_a_renamed_class_and_a_new_field_with_a_default_are_the_same_run() -> None:
    assert fingerprint(method=Before(3)) == fingerprint(method=Renamed(3))
    assert fingerprint(method=Before(3, 0.2)) == fingerprint(method=Renamed(3, lr=0.2))
    others = [fingerprint(method=value) for value in (Before(3), Before(4), Before(3, 0.2), Renamed(3, warm_up=1))]
    assert len(set(others)) == len(others)


def test_it_is_canonical_json_with_the_version() -> None:
    text = '{"a":[1,2.5,null,true],"b":{"steps":3},"c":"x/y","version":1}'
    assert json.loads(text)["version"] == VERSION
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert fingerprint(c=Path("x/y"), b=Before(3), a=(1, 2.5, None, True)) == expected
    assert fingerprint(a=[1, 2.5, None, True], b={"steps": 3}, c="x/y") == expected


def test_what_is_no_plain_value_is_refused() -> None:
    for value in (torch.zeros(1), object(), {1, 2}, Before):
        with pytest.raises(TypeError, match="can't be a part of a run's identity"):
            described({"x": [value]})
