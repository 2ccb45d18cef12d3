"""A student that equals the teacher costs nothing where the article says so, and something where it doesn't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netgraft.methods.baseline import Baseline
from netgraft.plan import Feature, Phase, StepOutputs
from tests.support.method_pairs import leaf, method, pairing, random, softmax, values

B, K = 5, 10


def maps(feature: Feature, net: nn.Sequential, seed: int) -> Tensor:
    """What a feature of the digits' networks would look like behind its connector, but random."""
    images = random(B, 1, 8, 8, seed=seed).float()
    with torch.no_grad():
        output = net.eval()[: feature.block + 1](images)
        noise = random(*output.shape, seed=seed).float()
        return noise if feature.connector is None else feature.connector.eval()(noise)


def same(chosen: Baseline, seed: int = 0) -> StepOutputs:
    """A batch in which the student gives the teacher's logits and features."""
    start = pairing()
    objective = chosen.objective(start)
    logits = random(B, K, seed=seed)
    teacher = tuple(
        maps(feature, nn.Sequential(*start.teacher.blocks()), seed).double() for feature in objective.teacher_features
    )
    return StepOutputs(logits.clone(), logits, None, tuple(feature.clone() for feature in teacher), teacher)


def apart(batch: StepOutputs) -> StepOutputs:
    """The same with another student."""
    student = tuple(random(*feature.shape, seed=9) for feature in batch.features)
    return replace(batch, output=batch.output + random(B, K, seed=9), features=student)


ZERO: list[tuple[str, dict[str, Any]]] = [
    ("kd", {}),
    ("at", {"at_form": "code"}),
    ("at", {"at_form": "paper"}),
    ("nst", {"nst_kernel": "polynomial"}),
    ("nst", {"nst_kernel": "linear"}),
    ("nst", {"nst_kernel": "gaussian"}),
    ("ft", {"ft_reduction": "element"}),
    ("ft", {"ft_reduction": "sample"}),
    ("rkd", {}),
    ("fitnets", {"hint_weight": 1.0}),
    ("kd+at", {}),
    ("fitnets+rkd", {}),
    ("at+nst+rkd", {}),
]


@pytest.mark.parametrize(("name", "settings"), ZERO)
def test_a_student_like_the_teacher_costs_nothing(name: str, settings: dict[str, Any]) -> None:
    # cross-entropy costs something even then
    alone = {"ce_weight": 0} if name in {"at", "nst", "ft", "rkd", "fitnets"} else {}
    chosen = method(name, **alone, **settings)
    batch = same(chosen)
    objective = chosen.objective(pairing()).terms
    # weights of up to 1000 multiply what rounding leaves
    assert all(abs(value) < 1e-9 for value in values(objective(batch)).values())
    assert all(value > 1e-6 for value in values(objective(apart(batch))).values())


def phase_before(name: str, **settings: Any) -> Phase:
    return method(name, **settings).objective(pairing()).before[0]


FLOWS = [(B, 3, 4, 4), (B, 5, 4, 4), (B, 6, 2, 2)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fsp", {"fsp_reduction": "element"}),
        ("fsp", {"fsp_reduction": "sample"}),
        ("fitnets", {"hint_reduction": "element"}),
        ("fitnets", {"hint_reduction": "sample"}),
    ],
)
def test_so_does_one_in_a_phase_before(name: str, settings: dict[str, Any]) -> None:
    objective = phase_before(name, **settings).objective
    teacher = tuple(random(*shape, seed=n) for n, shape in enumerate(FLOWS if name == "fsp" else FLOWS[:1]))
    student = tuple(feature.clone() for feature in teacher)
    equal = StepOutputs(student[-1], teacher[-1], None, student, teacher if name == "fsp" else ())
    assert list(values(objective(equal)).values()) == [0.0]
    others = tuple(feature + 1 for feature in student)
    assert all(value > 1e-3 for value in values(objective(replace(equal, features=others))).values())


def test_a_perfect_paraphraser_costs_nothing() -> None:
    objective = phase_before("ft").objective
    target = random(B, 3, 4, 4)
    assert values(objective(StepOutputs(target.clone(), target, None))) == {"reconstruction": 0.0}
    assert values(objective(StepOutputs(target + 2, target, None)))["reconstruction"] == pytest.approx(4.0)


def test_so_do_equal_gradients_at_the_input() -> None:
    weight, inputs = random(6, K, seed=1), leaf(B, 6, 1, 1)
    output = inputs.flatten(1) @ weight
    classes = output.detach().argmax(1)
    # of a linear classifier: the weights times the probabilities, the class's own less 1
    errors = softmax(output.detach().numpy())
    errors[np.arange(B), classes.numpy()] -= 1
    teacher = torch.from_numpy(errors @ weight.numpy().T)[:, :, None, None]
    objective = method("at-gradient", ce_weight=0).objective(pairing()).terms
    terms = values(objective(StepOutputs(output, output.detach(), None, (), (teacher,), inputs)))
    assert terms["gradient"] < 1e-6
    others = StepOutputs(inputs.flatten(1) @ weight, output.detach(), None, (), (2 * teacher,), inputs)
    assert values(objective(others))["gradient"] > 0.1


def several(count: int) -> Callable[[StepOutputs], StepOutputs]:
    """The same logits of several networks."""
    return lambda batch: replace(batch, output=torch.stack([batch.output] * count, 1))


@pytest.mark.parametrize(
    ("name", "term", "shape"),
    [
        ("supervised", "supervised", lambda batch: batch),
        ("byot", "classes", lambda batch: batch),
        ("dml", "classes", several(2)),
        ("one", "ensemble", several(4)),
        ("one", "branches", several(4)),
    ],
)
def test_hard_classes_cost_something_even_then(
    name: str, term: str, shape: Callable[[StepOutputs], StepOutputs]
) -> None:
    chosen = method(name)
    logits = random(B, K)
    batch = shape(StepOutputs(logits.clone(), logits, None, (random(B, 7),)))
    terms = values(chosen.plan(pairing()).phases[0].objective(batch))
    assert terms[term] > 0.1
    # what networks with the same logits teach one another is nothing
    assert all(abs(value) < 1e-9 for key, value in terms.items() if key in {"mutual", "from the ensemble"})


def test_boundaries_cost_something_even_then() -> None:
    # a response of 0.25 stands on the right side, within the margin of 1
    response = torch.full((B, 2, 3, 3), 0.25, dtype=torch.float64)
    objective = phase_before("ab").objective
    [loss] = values(objective(StepOutputs(response, response, None, (response,), (response,)))).values()
    assert loss == pytest.approx(0.75**2)
