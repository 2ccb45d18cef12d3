"""Policies of views: what they refuse, and how they describe themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest

from netgraft.data.view_policy import VIEW_POLICIES, ViewPolicy


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.0), "pad": 4},
        {"pad": -1},
        {"colour": 1.5},
        {"hflip": 2.0},
        {"mixup": 0.6, "cutmix": 0.6},
        *({name: math.nan} for name in ("hflip", "colour", "mixup", "cutmix", "pool")),
        {"crop_scale": (math.nan, 1.0)},
        {"mixup": math.inf},
        {"pool": 10**12},
        {"pad": 10**9},
        {"arithmetic": "16-bit"},
    ],
)
def test_policies_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|negative|not by both"):
        ViewPolicy("wrong", **wrong)


def test_policies_describe_themselves() -> None:
    assert {name: policy.name for name, policy in VIEW_POLICIES.items()} == {
        "rich": "rich",
        "rich-endless": "rich-endless",
        "crop": "crop",
        "plain": "plain",
    }
    assert str(VIEW_POLICIES["rich"]) == (
        "rich: random resized crops of 25% to 100%, mirrored 50%, colour 0.4, mixup 25%, cutmix 25%; 16,384 views"
    )
    assert str(VIEW_POLICIES["rich-endless"]) == (
        "rich-endless: random resized crops of 25% to 100% (8-bit), mirrored 50%, colour 0.4, mixup 25%, cutmix 25%; "
        "no view twice"
    )
    assert str(VIEW_POLICIES["crop"]) == "crop: random crops after 4 pixels of zeros, mirrored 50%; 16,384 views"
    assert str(VIEW_POLICIES["plain"]) == "plain: images as they are; one view an image"
