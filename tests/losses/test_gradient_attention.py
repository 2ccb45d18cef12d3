"""Gradient attention against its formula and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from netgraft.losses.gradient_attention import GradientAttention
from tests.support.losses import noise


def test_gradient_attention_equals_the_formula() -> None:
    s, t = noise(4, 3, 2, 5, seed=40), noise(4, 3, 2, 5, seed=41)
    total = 0.0
    for b in range(4):
        differences = (s[b] - t[b]).flatten().tolist()
        total += math.sqrt(sum(difference**2 for difference in differences)) / 2
    assert GradientAttention()(s, t).item() == pytest.approx(total / 4, rel=1e-12)


def test_gradient_attention_by_hand() -> None:
    s, t = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
    s[0, 0, 0] = torch.tensor([3.0, 4.0])
    assert GradientAttention()(s, t).item() == pytest.approx(5 / 2 / 2, rel=1e-6)


def test_the_weights_of_a_network_get_the_gradient_of_its_input_gradients() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    images, classes = noise(4, 2, 3, 3, seed=42), torch.tensor([0, 2, 1, 2])
    teacher = noise(4, 2, 3, 3, seed=43) / 10
    loss = GradientAttention()

    def attention() -> Tensor:
        inputs = images.clone().requires_grad_()
        classification = nn.functional.cross_entropy(network(inputs), classes, reduction="sum")
        [gradients] = torch.autograd.grad(classification, inputs, create_graph=True)
        return loss(gradients, teacher)

    step = 1e-6
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    for weight, gradient in zip(weights, torch.autograd.grad(attention(), weights), strict=True):
        assert gradient.abs().max() > 1e-4
        for index in range(0, weight.numel(), 3):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight.flatten()[index] += sign * step
                values.append(attention().item())
                with torch.no_grad():
                    weight.flatten()[index] -= sign * step
            difference = (values[0] - values[1]) / (2 * step)
            assert gradient.flatten()[index].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_weights_get_no_gradient_where_input_gradients_are_equal() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    inputs = noise(2, 1, 3, 3, seed=44, dtype=torch.float32).requires_grad_()
    [gradients] = torch.autograd.grad(network(inputs).square().sum(), inputs, create_graph=True)
    loss = GradientAttention()(gradients, gradients.detach().clone())
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, list(network.parameters())):
        assert (gradient == 0).all()
