"""Methods joined by +: the sum of the parts, each term once."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.methods.baseline import Objective
from netgraft.methods.registry import find
from netgraft.options import declared
from netgraft.plan import StepOutputs
from tests.support.method_pairs import Losses, method, pairing, prepare_run, random, values

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


@pytest.mark.parametrize("labels", [None, torch.tensor([1, 0, 9, 3])])
@pytest.mark.parametrize("names", [("kd", "at"), ("rkd", "nst", "at"), ("at", "byot"), ("ft", "rkd"), ("byot", "kd")])
def test_terms_are_those_of_the_parts_each_counted_once(names: tuple[str, ...], labels: Tensor | None) -> None:
    start, output, target = pairing(), random(B, K), random(B, K, seed=1)
    seen: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    expected: dict[str, float] = {}
    for number, name in enumerate(names):
        # of one temperature, which all of these have; a combination has one alone
        objective = method(name, temperature=2).objective(start)
        student, teacher = features(objective, seed=10 * number + 2)
        seen.append((student, teacher))
        terms = values(objective.terms(StepOutputs(output, target, labels, student, teacher)))
        expected = {**terms, **expected}
    student = tuple(feature for part, _ in seen for feature in part)
    teacher = tuple(feature for _, part in seen for feature in part)
    together = method("+".join(names), temperature=2).objective(start)
    assert len(together.features) == len(student)
    assert len(together.teacher_features) == len(teacher)
    terms = values(together.terms(StepOutputs(output, target, labels, student, teacher)))
    assert terms == {key: pytest.approx(value) for key, value in expected.items()}


def test_blocks_and_connectors_are_those_of_the_parts_in_order() -> None:
    objective = method("rkd+at+fitnets", hint_weight=1.0).objective(pairing())
    assert [feature.block for feature in objective.features] == [2, 1, 2, 1]
    assert [feature.block for feature in objective.teacher_features] == [2, 1, 2, 1]
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
    expected = {"kd", "factors", "classes", "classes 1", "soft 1", "features 1"}
    assert losses.phases[-1][-1].keys() == expected


def test_a_combination_has_the_hyper_parameters_of_all_parts() -> None:
    kind = find("fitnets+at+rkd")
    expected = {f.name for name in ("fitnets", "at", "rkd") for f in fields(find(name))}
    assert set(declared(kind)) == expected
    chosen = method("kd+at", at_weight=5, at_form="paper", temperature=2, steps=7)
    assert (chosen.at_weight, chosen.at_form, chosen.temperature, chosen.steps) == (5.0, "paper", 2.0, 7)
    assert "at_weight=5.0" in str(chosen.plan(pairing()))
    # shared ones have the first part's default
    assert method("byot+kd").temperature == method("byot").temperature == 3.0
    assert method("kd+byot").temperature == method("kd").temperature == 4.0
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
    assert thrice == {"kd": pytest.approx(once["kd"]), "attention": pytest.approx(3 * once["attention"])}


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
    assert terms["supervised"] == pytest.approx(exact)
    assert terms["classes"] == pytest.approx(0.1 * exact)
