"""Methods in which students teach students, and the two that need no teacher, against NumPy in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netgraft.data.view_policy import ViewPolicy
from netgraft.errors import RequestError
from netgraft.methods.one import Gate, GatedEnsemble
from netgraft.methods.peers import MeanAnswer, Peers
from netgraft.modules import state_digest
from netgraft.plan import ObjectiveFunction, Plan, StepOutputs
from netgraft.training.sampling import batch_indices
from tests.support.method_pairs import (
    cross_entropy,
    divergence,
    leaf,
    method,
    pairing,
    random,
    ready,
    softmax,
    values,
    watched,
)

B, K = 4, 6

PLAIN = ViewPolicy("plain", pool=0)

LABELS = [5, 0, 3, 3]


def objective(name: str, **settings: Any) -> ObjectiveFunction:
    plan: Plan = method(name, **settings).plan(pairing())
    return plan.phases[-1].objective


def cross_entropy_slope(logits: np.ndarray, classes: list[int]) -> np.ndarray:
    slope = softmax(logits)
    slope[np.arange(len(logits)), classes] -= 1
    return slope / len(logits)


def slopes(terms: Any, tensor: Tensor) -> np.ndarray:
    [slope] = torch.autograd.grad(sum(terms.values()), tensor, allow_unused=True)
    return np.zeros(tensor.shape) if slope is None else slope.numpy()


def layers(module: nn.Module) -> set[nn.Module]:
    return {layer for layer in module.modules() if not [*layer.children()]}


# --- KD and classes


def test_kd_with_and_without_labels() -> None:
    student, teacher = random(B, K), random(B, K, seed=1)
    soft = divergence(teacher.numpy(), student.numpy(), 4.0)
    hard = cross_entropy(student.numpy(), LABELS)
    terms = values(objective("kd")(StepOutputs(student, teacher, None)))
    assert terms == {"kd": pytest.approx(soft)}
    terms = values(objective("kd")(StepOutputs(student, teacher, torch.tensor(LABELS))))
    assert terms == {"kd": pytest.approx(0.9 * soft), "classes": pytest.approx(0.1 * hard)}
    # without soft targets the teacher's arg-max stands for labels
    answers = [int(np.argmax(row)) for row in teacher.numpy()]
    terms = values(objective("kd", kd_weight=0, ce_weight=2)(StepOutputs(student, teacher, None)))
    assert terms == {"classes": pytest.approx(2 * cross_entropy(student.numpy(), answers))}


def test_supervised_is_cross_entropy_with_labels_or_answers() -> None:
    student, teacher = random(B, K), random(B, K, seed=1)
    answers = [int(np.argmax(row)) for row in teacher.numpy()]
    assert answers != LABELS
    for labels, classes in ((None, answers), (torch.tensor(LABELS), LABELS)):
        terms = values(objective("supervised")(StepOutputs(student, teacher, labels)))
        assert terms == {"supervised": pytest.approx(cross_entropy(student.numpy(), classes))}


# --- BAN


def test_generations_start_alike_are_others_and_the_last_is_deployed() -> None:
    start = pairing()
    blocks = start.student.blocks()
    begun = state_digest(nn.Sequential(*blocks[1:]))
    plan = method("ban", generations=3).plan(start)
    born = [phase.trainable for phase in plan.phases]
    assert [state_digest(generation) for generation in born] == [begun] * 3
    for number, generation in enumerate(born):
        for other in born[:number]:
            assert {*generation.parameters()}.isdisjoint(other.parameters())
    assert {*born[-1].parameters()} == {p for block in blocks[1:] for p in block.parameters()}
    assert [*plan.student] == blocks
    # the first is taught by the teacher, each other by the one before
    assert [*(plan.phases[0].teacher or [])] == start.teacher.blocks()
    assert [phase.teacher for phase in plan.phases[1:]] == [phase.model for phase in plan.phases[:-1]]


def test_a_generations_target_is_the_formers_answer() -> None:
    seen: list[tuple[int, StepOutputs]] = []
    prepared = ready("digits", method("ban", generations=3, steps=6, batch_size=4, lr=1e-2), views=PLAIN)
    watched(prepared, lambda number, batch: seen.append((number, batch))).run()
    images = prepared.views.batch(range(4))
    assert len(seen) == 6
    with torch.no_grad():
        teachers = [prepared.pairing.teacher.eval(), *(phase.model.eval() for phase in prepared.plan.phases)]
        answers = [teacher(images) for teacher in teachers]
    for number, batch in seen:
        assert batch.target is not None
        nearest = [float(torch.cdist(batch.target, answer).min(1).values.max()) for answer in answers[:3]]
        # of the three that teach, the one that was trained last
        assert nearest[number] < 1e-4
        assert all(distance > 1e-2 for other, distance in enumerate(nearest) if other != number)


@pytest.mark.parametrize(("steps", "generations"), [(10, 3), (3000, 7), (3, 3), (8, 1)])
def test_generations_share_out_the_steps(steps: int, generations: int) -> None:
    plan = method("ban", steps=steps, generations=generations).plan(pairing())
    shares = [phase.schedule.steps for phase in plan.phases]
    assert len(shares) == generations
    assert sum(shares) == steps == plan.steps
    assert max(shares) - min(shares) <= 1


def test_a_generation_without_a_step_is_refused() -> None:
    with pytest.raises(RequestError, match="2 steps can't be shared out among 3 generations"):
        method("ban", steps=2, generations=3)
    with pytest.raises(RequestError, match="generations must be at least 1"):
        method("ban", generations=0)


def test_generations_learn_from_soft_targets_and_labels() -> None:
    student, teacher = random(B, K), random(B, K, seed=1)
    soft = divergence(teacher.numpy(), student.numpy(), 2.0)
    taught = objective("ban", temperature=2.0, ce_weight=3.0)
    assert values(taught(StepOutputs(student, teacher, None))) == {"kd": pytest.approx(soft)}
    terms = values(taught(StepOutputs(student, teacher, torch.tensor(LABELS))))
    hard = cross_entropy(student.numpy(), LABELS)
    assert terms == {"kd": pytest.approx(soft), "labels": pytest.approx(3 * hard)}


def test_the_ensemble_of_generations_has_their_mean_probabilities() -> None:
    plan = method("ban", generations=2).plan(pairing())
    assert isinstance(plan.ensemble, MeanAnswer)
    for phase in plan.phases:
        nn.init.normal_([*phase.model.parameters()][-1])
    images = random(B, 1, 8, 8).float()
    with torch.no_grad():
        together = plan.ensemble.eval()(images).numpy().astype(float)
        each = [softmax(phase.model(images).numpy().astype(float)) for phase in plan.phases]
    assert np.abs(each[0] - each[1]).max() > 1e-2
    np.testing.assert_allclose(softmax(together), (each[0] + each[1]) / 2, rtol=1e-4)


# --- DML


def test_peers_start_differently_and_the_first_is_deployed() -> None:
    start = pairing()
    plan = method("dml", peers=3).plan(start)
    [phase] = plan.phases
    together = phase.model[-1]
    assert isinstance(together, Peers)
    assert len({state_digest(peer) for peer in together.networks}) == 3
    for before, after in zip(together.networks, [*together.networks][1:], strict=False):
        assert {*before.parameters()}.isdisjoint(after.parameters())
        shapes = [[p.shape for p in peer.parameters()] for peer in (before, after)]
        assert shapes[0] == shapes[1]
    assert layers(together.networks[0]) == layers(nn.Sequential(*start.student.blocks()[1:]))
    assert [*plan.student] == start.student.blocks()


def test_peers_answer_side_by_side_and_may_work_in_place() -> None:
    peers = Peers([nn.ReLU(inplace=True), nn.Identity()])
    inputs = torch.tensor([[-1.0, 2.0]])
    assert peers(inputs).tolist() == [[[0.0, 2.0], [-1.0, 2.0]]]
    assert inputs.tolist() == [[-1.0, 2.0]]


def test_mutual_learning_and_its_gradient_by_formula() -> None:
    peers, weight = 3, 0.7
    logits = leaf(B, peers, K)
    terms = objective("dml", peers=peers, mutual_weight=weight)(StepOutputs(logits, None, torch.tensor(LABELS)))
    z = [logits.detach().numpy()[:, peer] for peer in range(peers)]
    others = [(i, j) for i in range(peers) for j in range(peers) if i != j]
    assert values(terms) == {
        "classes": pytest.approx(sum(cross_entropy(one, LABELS) for one in z)),
        "mutual": pytest.approx(weight * sum(divergence(z[j], z[i], 1.0) for i, j in others) / (peers - 1)),
    }
    # the slope of KL(p_j || p_i) at peer i's logits is p_i - p_j; none goes to peer j, which teaches
    expected = np.zeros((B, peers, K))
    for i, one in enumerate(z):
        expected[:, i] = cross_entropy_slope(one, LABELS)
    for i, j in others:
        expected[:, i] += weight / (peers - 1) * (softmax(z[i]) - softmax(z[j])) / B
    np.testing.assert_allclose(slopes(terms, logits), expected, atol=1e-7)


@pytest.mark.parametrize(("name", "field"), [("dml", "peers"), ("one", "branches")])
def test_one_student_alone_is_refused(name: str, field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} must be at least 2, not 1"):
        method(name, **{field: 1})


# --- ONE


def test_low_blocks_are_shared_and_branches_start_differently() -> None:
    start = pairing()
    blocks = start.student.blocks()
    plan = method("one", branches=3).plan(start)
    [phase] = plan.phases
    *low, ensemble = phase.model
    # the last stage in front of the head branches, with the head
    assert low == blocks[:2]
    assert isinstance(ensemble, GatedEnsemble)
    branches = [*ensemble.branches.networks]
    assert layers(branches[0]) == layers(nn.Sequential(*blocks[2:]))
    assert len({state_digest(branch) for branch in branches}) == 3
    assert {*branches[1].parameters()}.isdisjoint(branches[2].parameters())
    assert [*plan.student] == blocks
    assert {*blocks[1].parameters()} <= {*phase.trainable.parameters()}


def test_the_ensemble_is_the_gated_sum() -> None:
    torch.manual_seed(0)
    gate = Gate(5, 3)
    ensemble = GatedEnsemble(Peers([nn.Sequential(nn.Flatten(), nn.Linear(20, K)) for _ in range(3)]), gate)
    shared = random(B, 5, 2, 2).float()
    with torch.no_grad():
        weights, answers = gate(shared), ensemble(shared)
    assert weights.shape == (B, 3)
    np.testing.assert_allclose(weights.numpy().sum(axis=1), np.ones(B), rtol=1e-6)
    assert float(weights.std(0).min()) > 1e-3
    assert answers.shape == (B, 4, K)
    for sample in range(B):
        expected = sum(float(w) * z for w, z in zip(weights[sample], answers[sample, :3].double().numpy(), strict=True))
        np.testing.assert_allclose(answers[sample, 3].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_native_ensemble_is_reported_as_it_was_trained() -> None:
    plan = method("one").plan(pairing())
    assert plan.ensemble is not None
    images = random(B, 1, 8, 8).float()
    with torch.no_grad():
        together = plan.ensemble.eval()(images)
        torch.testing.assert_close(together, plan.phases[0].model.eval()(images)[:, 3])


def test_branches_learn_from_their_ensemble_which_learns_from_classes_alone() -> None:
    temperature = 3.0
    answers = leaf(B, 3, K)  # of two branches and their ensemble
    terms = objective("one", branches=2)(StepOutputs(answers, None, torch.tensor(LABELS)))
    z = answers.detach().numpy()
    branches, ensemble = [z[:, 0], z[:, 1]], z[:, 2]
    assert values(terms) == {
        "ensemble": pytest.approx(cross_entropy(ensemble, LABELS)),
        "branches": pytest.approx(sum(cross_entropy(one, LABELS) for one in branches)),
        "from the ensemble": pytest.approx(sum(divergence(ensemble, one, temperature) for one in branches)),
    }
    expected = np.stack([cross_entropy_slope(one, LABELS) for one in (*branches, ensemble)], axis=1)
    for number, one in enumerate(branches):
        # tau^2 KL has the slope tau (q - p)
        expected[:, number] += temperature * (softmax(one, temperature) - softmax(ensemble, temperature)) / B
    np.testing.assert_allclose(slopes(terms, answers), expected, atol=1e-7)


# --- BYOT


def test_shallow_classifiers_learn_from_the_deepest_which_learns_from_classes_alone() -> None:
    alpha, weight, temperature = 0.4, 0.05, 3.0
    output, deepest = leaf(B, K), leaf(B, 7, seed=1)
    embeddings = [leaf(B, 7, seed=seed) for seed in (2, 3)]
    shallow = [leaf(B, K, seed=seed) for seed in (4, 5)]
    features = (deepest, embeddings[0], shallow[0], embeddings[1], shallow[1])
    taught = objective("byot", soft_weight=alpha, feature_weight=weight)
    terms = taught(StepOutputs(output, None, torch.tensor(LABELS), features))
    z, d = output.detach().numpy(), deepest.detach().numpy()
    expected = {"classes": cross_entropy(z, LABELS)}
    for place, (embedding, logits) in enumerate(zip(embeddings, shallow, strict=True), 1):
        y, e = logits.detach().numpy(), embedding.detach().numpy()
        expected[f"classes {place}"] = (1 - alpha) * cross_entropy(y, LABELS)
        expected[f"soft {place}"] = alpha * divergence(z, y, temperature)
        expected[f"features {place}"] = weight * np.mean(np.sum((e - d) ** 2, axis=1)) / 2
        np.testing.assert_allclose(slopes(terms, embedding), weight * (e - d) / B, atol=1e-7)
    assert values(terms) == {name: pytest.approx(value) for name, value in expected.items()}
    np.testing.assert_allclose(slopes(terms, output), cross_entropy_slope(z, LABELS), atol=1e-7)
    assert not slopes(terms, deepest).any()


def test_shallow_classifiers_stand_at_every_block_end_but_the_last() -> None:
    lesson = method("byot").objective(pairing("none"))
    assert [feature.block for feature in lesson.features] == [2, 0, 0, 1, 1]
    maps = {0: random(B, 32, 4, 4), 1: random(B, 32, 2, 2), 2: random(B, 64, 1, 1)}
    shapes = []
    for feature in lesson.features:
        assert feature.connector is not None
        shapes.append(tuple(feature.connector(maps[feature.block].float()).shape))
    # embeddings are as wide as the deepest maps, classifiers answer with the classes of the digits
    assert shapes == [(B, 64), (B, 64), (B, 10), (B, 64), (B, 10)]
    # an answer is made of its embedding, which is trained once
    for embedding, answer in (lesson.features[1:3], lesson.features[3:5]):
        assert embedding.connector is not None
        assert answer.connector is not None
        assert layers(embedding.connector) < layers(answer.connector)


# --- none


def test_untrained_takes_statistics_and_changes_nothing_else() -> None:
    steps, batch = 5, 3
    prepared = ready("digits", method("none", steps=steps, batch_size=batch))
    blocks = prepared.pairing.student.blocks()
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    [convolution] = [layer for layer in blocks[1].modules() if isinstance(layer, nn.Conv2d)][:1]
    norms = [layer for layer in blocks[1].modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms[0].running_mean is not None
    assert norms[0].running_var is not None
    mean, variance = (value.double().numpy().copy() for value in (norms[0].running_mean, norms[0].running_var))
    for step in range(steps):
        views = prepared.views.batch(
            batch_indices(prepared.runner.seed, 0, step, images=4, per_image=4, batch_size=batch)
        )
        with torch.no_grad():
            maps = convolution(blocks[0].eval()(views)).double().numpy()
        # an exponential average of each channel's mean and unbiased variance, with momentum 0.1
        mean = 0.9 * mean + 0.1 * maps.mean(axis=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1).var(axis=1, ddof=1)
    prepared.run()
    np.testing.assert_allclose(norms[0].running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norms[0].running_var.numpy(), variance, rtol=1e-4)
    assert {int(norm.get_buffer("num_batches_tracked")) for norm in norms} == {steps}
    changed = {name for name, value in prepared.model.state_dict().items() if not torch.equal(value, before[name])}
    kinds = {"running_mean", "running_var", "num_batches_tracked"}
    statistics = {name for name in before if name.rpartition(".")[2] in kinds}
    inherited = {name for name in before if name.startswith("features.") and int(name.split(".")[1]) < 6}
    assert changed == statistics - inherited
    assert inherited & statistics


def test_without_steps_nothing_is_trained() -> None:
    for name in ("none", "kd", "dml", "one", "ban"):
        prepared = ready("digits", method(name, steps=0))
        start = state_digest(prepared.model)
        assert prepared.plan.phases == ()
        assert state_digest(prepared.run().student) == start


def test_labels_decide_where_there_are_any() -> None:
    teacher = random(B, K, seed=1)
    batch = StepOutputs(teacher, teacher, torch.tensor(LABELS))
    assert batch.classes.tolist() == LABELS
    assert replace(batch, labels=None).classes.tolist() == [int(np.argmax(row)) for row in teacher.numpy()]
