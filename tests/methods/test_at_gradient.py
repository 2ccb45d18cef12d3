"""Attention transfer by gradients, against central differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netgraft.grafting.pairing import Pairing
from netgraft.losses import GradientAttention
from netgraft.methods.at_gradient import InputGradient
from netgraft.modules import state_digest
from netgraft.plan import StepOutputs
from netgraft.splitting.chain import BlockChain, Cut
from tests.support.method_pairs import (
    PLAIN,
    Losses,
    leaf,
    method,
    pairing,
    prepare_run,
    random,
    values,
    with_observer,
)

B, K = 3, 10


def brute_force(blocks: nn.Module, inputs: Tensor) -> Tensor:
    """Gradient of one sample's cross-entropy with the arg-max, by central differences in float64."""
    blocks, flat, step = blocks.double().eval(), inputs.double().flatten(), 1e-6
    moved = torch.eye(len(flat), dtype=torch.float64) * step
    shape = (-1, *inputs.shape[1:])
    with torch.no_grad():
        target = blocks(inputs.double()).argmax(1)
        losses = [-blocks((flat + sign * moved).view(shape)).log_softmax(1)[:, target[0]] for sign in (1, -1)]
    return ((losses[0] - losses[1]) / (2 * step)).view(inputs.shape)


@pytest.mark.parametrize("inherit", ["auto", "none"])
def test_the_teachers_gradient_is_the_brute_force_one_where_training_begins(inherit: str) -> None:
    seen: list[StepOutputs] = []
    chosen = method("at-gradient", steps=1, batch_size=1)
    prepared = prepare_run("digits", chosen, count=1, views=PLAIN, inherit=inherit)
    with_observer(prepared, lambda number, batch: seen.append(batch)).run()
    first = 1 if inherit == "auto" else 0
    # another teacher of the same bytes, since the comparison needs it in float64
    teacher = pairing(inherit).teacher.eval().blocks()
    with torch.no_grad():
        inputs = nn.Sequential(*teacher[:first])(prepared.views.batch([0]))
    assert inputs.shape[1:] == ((32, 4, 4) if first else (1, 8, 8))
    [gradient] = seen[0].teacher_features
    expected = brute_force(nn.Sequential(*teacher[first:]), inputs)
    assert seen[0].inputs is not None
    torch.testing.assert_close(seen[0].inputs.detach(), inputs, atol=1e-4, rtol=1e-4)
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(gradient.double() / scale, expected / scale, atol=2e-3, rtol=0)


def test_the_teachers_gradient_of_a_doubtful_image_is_the_brute_force_one() -> None:
    blocks = nn.Sequential(*pairing().teacher.eval().blocks()[1:])
    inputs = random(1, 32, 4, 4).float().abs()
    gradient = InputGradient(blocks)(inputs)
    assert not gradient.requires_grad
    expected = brute_force(blocks, inputs)
    assert float(expected.norm()) > 1e-3
    torch.testing.assert_close(gradient.double(), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_the_gradients_distance_has_a_gradient_for_the_weights() -> None:
    objective = method("at-gradient", ce_weight=0.0).objective(pairing()).terms
    images, teacher_gradient, logits = random(B, 2, 2, 1), random(B, 2, 2, 1, seed=1), random(B, K, seed=2)
    weight = leaf(4, K, seed=3)

    def loss(weight: Tensor) -> Tensor:
        inputs = images.clone().requires_grad_()
        output = inputs.flatten(1).tanh() @ weight
        [value] = objective(StepOutputs(output, logits, None, (), (teacher_gradient,), inputs)).values()
        return value

    loss(weight).backward()
    assert weight.grad is not None
    step = 1e-3  # logits are taken to float32
    for row, column in [(0, 0), (1, 5), (3, 9)]:
        moved = torch.zeros(4, K, dtype=torch.float64)
        moved[row, column] = step
        slope = float(loss(weight.detach() + moved).detach() - loss(weight.detach() - moved).detach()) / (2 * step)
        assert float(weight.grad[row, column]) == pytest.approx(slope, abs=2e-4)
        assert abs(slope) > 1e-2


def test_gradients_alone_train_every_block() -> None:
    prepared = prepare_run("digits", method("at-gradient", ce_weight=0.0, steps=1, batch_size=4))
    before = [state_digest(block) for block in prepared.pairing.student.blocks()]
    losses = Losses()
    prepared.run(reporter=losses)
    assert list(losses.phases[0][0]) == ["gradient"]
    after = [state_digest(block) for block in prepared.pairing.student.blocks()]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, False, False]


def test_on_the_labeled_track_the_class_is_the_label_in_both_networks() -> None:
    start = pairing()
    teacher, student = (nn.Sequential(*chain.eval().blocks()[1:]) for chain in (start.teacher, start.student))
    objective = method("at-gradient", ce_weight=0.0).objective(start)
    images, labels = random(B, 32, 4, 4).float().abs(), torch.tensor([3, 1, 4])

    def gradient(network: nn.Module) -> Tensor:
        inputs = images.clone().requires_grad_()
        probabilities = network(inputs).softmax(1)
        # the negative log of each sample's own class, summed, as it is defined
        own = torch.stack([probabilities[row, label] for row, label in enumerate(labels.tolist())])
        return torch.autograd.grad(-own.log().sum(), inputs)[0]

    expected = float(GradientAttention()(gradient(student), gradient(teacher)))
    inputs = images.clone().requires_grad_()
    # what was computed once, for the arg-max, must not be what is compared
    outputs = StepOutputs(
        student(inputs), teacher(images).detach(), labels, (), (torch.full_like(images, 7.0),), inputs
    )
    assert values(objective.terms(outputs))["gradient"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Classifier(nn.Module):
    """From maps (B, H, W, 3) to logits (B, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, K))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((1, 2))


def test_gradients_of_other_layouts_are_compared_as_maps() -> None:
    def chain() -> BlockChain:
        return BlockChain([ChannelsLast(), Classifier()], ["a", "head"], [Cut("a", (4, 5, 3), "NHWC")])

    start = Pairing(chain(), chain(), inherited=1)
    objective = method("at-gradient", ce_weight=0.0).objective(start)
    images = random(B, 4, 5, 3).float()
    [feature] = objective.teacher_features
    assert feature.block == 0
    assert feature.connector is not None
    gradient = brute_force(start.teacher[1], images[:1]).permute(0, 3, 1, 2)
    start.teacher[1].float()
    # of the arg-max, with the channels in front
    compared = feature.connector(images)
    assert compared.shape == (B, 3, 4, 5)
    torch.testing.assert_close(compared[:1].double(), gradient, atol=1e-5, rtol=1e-3)

    inputs, labels = images.clone().requires_grad_(), torch.tensor([3, 1, 4])
    output = start.student[1](inputs)
    gradients = [
        torch.autograd.grad(nn.functional.cross_entropy(net(again), labels, reduction="sum"), again)[0]
        for net, again in ((chain[1], images.clone().requires_grad_()) for chain in (start.student, start.teacher))
    ]
    expected = float(GradientAttention()(*(gradient.permute(0, 3, 1, 2) for gradient in gradients)))
    batch = StepOutputs(output, start.teacher[1](images).detach(), labels, (), (compared,), inputs)
    assert values(objective.terms(batch)) == {"gradient": pytest.approx(expected, rel=1e-4)}
