"""What a job takes from the preset that it names, and what from its own options."""

from __future__ import annotations

import pytest

from netgraft.grafting.options import PairingOptions
from netgraft.jobs.distill import DistillJob


@pytest.mark.parametrize(
    ("preset", "asked", "init"),
    [
        ("reference", "auto", "random"),
        ("reference", "random", "random"),
        ("reference", "slice", "slice"),
        ("default", "auto", "slice"),
        ("default", "random", "random"),
    ],
)
def test_the_presets_own_start_is_taken_unless_another_is_asked_for(preset: str, asked: str, init: str) -> None:
    job = DistillJob(shots=1, preset=preset, pairing=PairingOptions(init=asked, inherit="none"))
    prepared = job.prepare()
    assert prepared.distillation.pairing.init == init
    # the run says which it was; what else was asked for stays
    assert prepared.config["init"] == init
    assert prepared.config["inherit"] == "none"
    assert prepared.distillation.pairing.inherited == 0


def test_the_presets_own_views_are_taken_unless_others_are_asked_for() -> None:
    def policy(preset: str, views: str | None = None) -> str:
        return DistillJob(shots=1, preset=preset, views=views).prepare().distillation.views.policy.name

    assert (policy("reference"), policy("reference", "rich")) == ("crop", "rich")
    assert (policy("default"), policy("default", "crop")) == ("rich", "crop")
