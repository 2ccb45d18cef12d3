"""Methods joined by +: the sum of the parts, each term under its method's name."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.methods.at import AT
from netgraft.methods.baseline import HEAD_IS_NOT_TAUGHT, Baseline, Objective, TermBesideClasses
from netgraft.methods.combination import about_all, combine
from netgraft.methods.method import About
from netgraft.methods.registry import METHODS, find
from netgraft.methods.rkd import RKD
from netgraft.options import declared
from netgraft.plan import StepOutputs
from tests.support.method_pairs import (
    Losses,
    cross_entropy,
    divergence,
    method,
    pairing,
    prepare_run,
    random,
    values,
)

B, K = 4, 10


def features(objective: Objective, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Random features as the digits' networks would give them: of the student and of the teacher."""
    start = pairing()
    found = []
    for chain, wanted in ((start.student, objective.features), (start.teacher, objective.teacher_features)):
        of_chain = []
        for number, feature in enumerate(wanted):
            maps = random(B, *chain.cuts[feature.block].shape, seed=seed + number).float()
            with torch.no_grad():
                of_chain.append(maps if feature.connector is None else feature.connector.eval()(maps))
        found.append(tuple(of_chain))
    return found[0], found[1]


LABELS = torch.tensor([1, 0, 9, 3])

PARTS = [("kd", "at"), ("rkd", "nst", "at"), ("at", "byot"), ("ft", "rkd"), ("kd", "byot"), ("supervised", "kd", "nst")]


Features = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Of the student and of the teacher."""


def shared_inputs(names: Sequence[str]) -> dict[str, Features]:
    """Features of each method, such that a method gets the same ones whatever stands beside it."""
    start = pairing()
    return {
        name: features(method(name, **alone(name)).objective(start), seed=100 + 10 * list(METHODS).index(name))
        for name in names
    }


def alone(name: str) -> dict[str, float]:
    """Settings with which a method is what it is in a combination: its own term."""
    return {"ce_weight": 0.0} if issubclass(METHODS[name], TermBesideClasses) else {}


def loss_of(name: str, seen: Mapping[str, Features], labels: Tensor | None) -> float:
    parts = name.split("+")
    batch = StepOutputs(
        random(B, K),
        random(B, K, seed=1),
        labels,
        tuple(feature for part in parts for feature in seen[part][0]),
        tuple(feature for part in parts for feature in seen[part][1]),
    )
    settings = alone(name) if len(parts) == 1 else {}
    return sum(values(method(name, **settings).objective(pairing()).terms(batch)).values())


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("names", PARTS, ids="+".join)
def test_the_loss_is_the_sum_of_the_parts_whatever_their_order(names: tuple[str, ...], labels: Tensor | None) -> None:
    seen = shared_inputs(names)
    expected = sum(loss_of(name, seen, labels) for name in names)
    for order in itertools.permutations(names):
        assert loss_of("+".join(order), seen, labels) == pytest.approx(expected)


def test_no_method_loses_its_cross_entropy_to_another() -> None:
    # by hand: 0.1 of KD, and BYOT's own of the deepest classifier
    output, target = random(B, K), random(B, K, seed=1)
    seen = shared_inputs(["kd", "byot"])["byot"]
    for name in ("kd+byot", "byot+kd"):
        terms = values(method(name).objective(pairing()).terms(StepOutputs(output, target, LABELS, *seen)))
        hard = cross_entropy(output.numpy(), LABELS.tolist())
        assert terms["kd/classes"] == pytest.approx(0.1 * hard)
        assert terms["byot/classes"] == pytest.approx(hard)
        soft = 0.9 * divergence(target.numpy(), output.numpy(), 4.0)
        assert terms["kd/kd"] == pytest.approx(soft)


def test_a_head_that_nothing_teaches_is_told_of() -> None:
    for name, settings in (("rkd+at", {}), ("at", {"ce_weight": 0})):
        assert "the head stays as it starts; add kd or supervised" in str(method(name, **settings).plan(pairing()))
    for name in ("kd+at", "at", "rkd+supervised", "byot+at"):
        assert "the head stays" not in str(method(name).plan(pairing()))


def test_blocks_and_connectors_are_those_of_the_parts_in_order() -> None:
    objective = method("rkd+at+fitnets", hint_weight=1.0).objective(pairing())
    assert [feature.block for feature in objective.features] == [2, 1, 1]
    assert [feature.block for feature in objective.teacher_features] == [2, 1, 1]
    assert objective.features[-1].connector is objective.before[0].features[0].connector
    assert not objective.differentiates_input
    assert method("kd+at-gradient").objective(pairing()).differentiates_input


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("fitnets+ab", ["hint behind block 2", "activation boundaries", "train the student"]),
        ("ab+fitnets", ["activation boundaries", "hint behind block 2", "train the student"]),
        ("ft+kd+fsp", ["train the paraphraser", "flows", "train the student"]),
        ("kd+at", ["train the student"]),
    ],
)
def test_the_phases_before_are_those_of_all_parts_in_order(name: str, phases: list[str]) -> None:
    assert [phase.name for phase in method(name).plan(pairing()).phases] == phases


def test_a_combination_trains_all_of_its_connectors() -> None:
    prepared = prepare_run(
        "digits", method("fitnets+ft+byot", hint_steps=1, paraphraser_steps=1, steps=2, batch_size=4)
    )
    last = prepared.plan.phases[-1]
    connectors = nn.ModuleList(feature.connector for feature in last.features if feature.connector is not None)
    assert len([*connectors.parameters()]) > 5
    assert {*connectors.parameters()} <= {*last.trainable.parameters()}
    losses = Losses()
    prepared.run(reporter=losses)
    expected = {"ft/factors", "byot/classes", "byot/classes 1", "byot/soft 1", "byot/features 1"}
    assert losses.phases[-1][-1].keys() == expected


def test_a_combination_has_the_hyper_parameters_of_all_parts() -> None:
    # one that several parts have bears its part's name
    assert set(declared(find("at+rkd"))) - set(declared(find("supervised"))) == {
        "at_ce_weight",
        "rkd_ce_weight",
        "at_weight",
        "at_power",
        "at_form",
        "distance_weight",
        "angle_weight",
    }
    chosen = method("kd+at", at_weight=5, at_form="paper", temperature=2, steps=7)
    assert (chosen.at_weight, chosen.at_form, chosen.temperature, chosen.steps) == (5.0, "paper", 2.0, 7)
    assert "at_weight=5.0" in str(chosen.plan(pairing()))
    for name in ("byot+kd", "kd+byot"):
        assert (method(name).byot_temperature, method(name).kd_temperature) == (3.0, 4.0)
    with pytest.raises(RequestError, match="no hyper-parameter 'nst_weight'"):
        method("kd+at", nst_weight=1)
    with pytest.raises(RequestError, match="at_form must be one of paper, code"):
        method("kd+at", at_form="other")


def test_settings_reach_the_part_that_they_belong_to() -> None:
    start, output, target = pairing(), random(B, K), random(B, K, seed=1)
    plain, heavy = (method("kd+at", at_weight=weight).objective(start) for weight in (10, 30))
    student, teacher = features(plain, seed=2)
    batch = StepOutputs(output, target, None, student, teacher)
    once, thrice = (values(objective.terms(batch)) for objective in (plain, heavy))
    assert thrice == {
        "kd/kd": pytest.approx(once["kd/kd"]),
        "at/attention": pytest.approx(3 * once["at/attention"]),
    }


def test_a_wrong_setting_of_a_part_is_refused() -> None:
    for name, settings, complaint in (
        ("kd+at", {"at_power": 0.5}, "power must be a finite number of at least 1"),
        ("ft+at", {"ft_rate": 0}, "rate must be a finite number above 0"),
        ("at+kd", {"kd_weight": -1}, "kd_weight can't be negative"),
    ):
        with pytest.raises(RequestError, match=complaint):
            method(name, **settings).plan(pairing())


def test_supervised_adds_a_whole_cross_entropy_to_the_part_of_kd() -> None:
    output, target, labels = random(B, K), random(B, K, seed=1), torch.tensor([1, 0, 9, 3])
    terms = values(method("kd+supervised").objective(pairing()).terms(StepOutputs(output, target, labels)))
    exact = torch.nn.functional.cross_entropy(output, labels).item()
    assert terms["supervised/supervised"] == pytest.approx(exact)
    assert terms["kd/classes"] == pytest.approx(0.1 * exact)


FIRST = About("a", "offline", "logits", "1", "none", "A et al.", 2001, teacher=False)
SECOND = About("b", "online", "logits", "2", "none", "B et al.", 2005, teacher=False)
THIRD = About("c", "offline", "features", "3", "classes", "C et al.", 2003)


def test_facts_of_a_combination_are_those_of_all_parts() -> None:
    assert about_all("all", [FIRST, SECOND, THIRD]) == About(
        summary="all",
        category="offline+online",
        matches="logits, features",
        phases="1+2+3",
        labels="classes",
        article="A et al.; B et al.; C et al.",
        year=2005,
        teacher=True,
    )
    plain = about_all("all", [FIRST, SECOND])
    assert (plain.labels, plain.teacher, plain.category, plain.matches) == ("none", False, "offline+online", "logits")


def test_a_combination_is_made_of_any_parts() -> None:
    """Under names of the caller's; a method of one's own may be a part."""
    parts: dict[str, type[Baseline]] = {"my-at": AT, "rkd": RKD}
    kind: Any = combine(parts, about_all("Both.", [AT.about, RKD.about]))
    assert (kind.__name__, kind.__doc__, kind.about.summary) == ("my-at+rkd", "Both.", "Both.")
    assert issubclass(kind, Baseline)
    assert list(kind.presets) == ["default"]
    names = [f.name for f in fields(kind)]
    assert len(names) == len(set(names))
    assert {"my_at_ce_weight", "rkd_ce_weight", "at_weight", "distance_weight", "steps", "lr"} <= set(names)
    assert not {"ce_weight", "my_at_at_weight", "my_at_steps"} & set(names)
    for f in fields(kind):
        one = next(part for part in (AT, RKD) if f.name.removeprefix("my_at_").removeprefix("rkd_") in vars(part()))
        assert f.default == vars(one())[f.name.removeprefix("my_at_").removeprefix("rkd_")]
    assert declared(kind)["at_form"].choices == declared(AT)["at_form"].choices

    both = kind(my_at_ce_weight=0.0, rkd_ce_weight=0.0, at_weight=2.0, angle_weight=0.0)
    with pytest.raises(FrozenInstanceError):
        both.at_weight = 3.0
    objective = both.objective(pairing())
    assert objective.notes == (*AT().objective(pairing()).notes, HEAD_IS_NOT_TAUGHT)
    taught = kind(my_at_ce_weight=0.0, rkd_ce_weight=1.0).objective(pairing())
    assert taught.notes == AT().objective(pairing()).notes
    assert [feature.block for feature in objective.features] == [1, 2]
    student, teacher = features(objective, seed=5)
    terms = values(objective.terms(StepOutputs(random(B, K), random(B, K, seed=1), None, student, teacher)))
    at, rkd = AT(ce_weight=0.0, at_weight=2.0), RKD(ce_weight=0.0, angle_weight=0.0)
    single = {
        "my-at": at.objective(pairing()).terms(StepOutputs(student[0], None, None, student[:1], teacher[:1])),
        "rkd": rkd.objective(pairing()).terms(StepOutputs(student[0], None, None, student[1:], teacher[1:])),
    }
    assert terms == {
        f"{part}/{term}": pytest.approx(float(value)) for part, one in single.items() for term, value in one.items()
    }
    with pytest.raises(RequestError, match="power must be a finite number of at least 1"):
        kind(at_power=0.5)
    with pytest.raises(RequestError, match="distance_weight can't be negative"):
        kind(distance_weight=-1.0)
