"""What baselines have in common."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.baseline import Baseline, preset_on_rich_views
from netgraft.methods.method import Budget
from netgraft.methods.registry import find
from netgraft.plan import TrainingSchedule
from netgraft.training.optimizers import make_optimizer
from tests.support.method_pairs import method, networks


def test_a_method_that_teaches_nothing_can_not_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Baseline()  # type: ignore[abstract]
    assert issubclass(find("kd+at"), Baseline)


def parameter_ids(modules: list[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


@pytest.mark.parametrize("start", ["slice", "random"])
@pytest.mark.parametrize("name", ["kd+fitnets", "kd+ft", "kd+ab", "kd+fsp", "byot", "dml", "one"])
def test_what_starts_at_random_learns_at_the_whole_rate_and_what_starts_close_at_a_tenth(name: str, start: str) -> None:
    settings = {"hint_weight": 1.0} if name == "kd+fitnets" else {}
    pairing = cut_and_pair(*networks("digits"), PairingOptions(start), input_size=(1, 8, 8))
    weights = {id(p): p.detach().clone() for p in pairing.student.parameters()}
    plan = method(name, lr=1e-2, **settings).plan(pairing)
    own = parameter_ids([*pairing.student.blocks()])
    seen: dict[bool, set[float]] = {True: set(), False: set()}
    for phase in plan.phases:
        for group in make_optimizer(phase).param_groups:
            for parameter in group["params"]:
                seen[id(parameter) in own].add(group["peak"])
    assert seen[True] == {1e-3 if start == "slice" else 1e-2}
    # connectors, other peers and branches, the gate, the paraphraser
    assert seen[False] == {1e-2}
    assert all(torch.equal(weights[id(p)], p) for p in pairing.student.parameters())


def test_a_preset_on_rich_views_changes_what_it_names_whatever_the_budget() -> None:
    preset = preset_on_rich_views("what it is", steps=7)
    assert (preset.meaning, preset.views, preset.init) == ("what it is", VIEW_POLICIES["rich"], "auto")
    assert [preset.hyperparameters(Budget(images, 10)) for images in (1, 1000)] == [{"steps": 7}] * 2


def test_settings_of_the_training_reach_its_schedule() -> None:
    chosen = method("kd", steps=7, batch_size=5, lr=0.5, schedule="one-cycle", optimizer="sgd", weight_decay=0.25)
    start = cut_and_pair(*networks("digits"), PairingOptions("random"), input_size=(1, 8, 8))
    [phase] = chosen.plan(start).phases
    assert phase.schedule == TrainingSchedule(7, 5, 0.5, None, "sgd", "one-cycle", 0.25)


def test_bounds_belong_to_what_is_allowed() -> None:
    start = cut_and_pair(*networks("digits"), PairingOptions("random"), input_size=(1, 8, 8))
    assert method("none", steps=0, batch_size=1).plan(start).phases == ()
    assert method("one", rampup=1.0).rampup == 1.0
