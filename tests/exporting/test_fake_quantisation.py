"""Learning in 8 bits: rounding as the quantised file rounds, gradients straight through, and weights that lose less."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from netgraft.data.sources import open_data
from netgraft.exporting.fake_quantisation import (
    RoundedWeight,
    fake_quantised,
    learned_in_8_bits,
    ranges_of_inputs,
    rounded,
)
from netgraft.exporting.pixels import normalised, pixels_of
from netgraft.models.loading import load_teacher
from netgraft.modules import state_digest

CONFIG = {
    "input_size": (1, 8, 8),
    "mean": (0.3064,),
    "std": (0.3753,),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def test_weights_are_rounded_to_steps_of_their_channel_and_gradients_pass() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = RoundedWeight()(weight)
    values = weight.detach().numpy().astype(float)
    for channel, got in zip(values, found.detach().numpy(), strict=True):
        step = np.abs(channel).max() / 127
        assert got == pytest.approx(np.round(channel / step) * step, abs=1e-6)
        assert np.abs(got).max() == pytest.approx(np.abs(channel).max(), rel=1e-6)
    (found * torch.arange(48.0).reshape(weight.shape)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.arange(48.0).reshape(weight.shape))
    assert torch.equal(RoundedWeight()(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_activations_have_256_levels_of_which_zero_is_one() -> None:
    values = torch.linspace(-3, 9, 2001).requires_grad_()
    found = rounded(values, -1.0, 4.0)
    step = 5 / 255
    expected = (np.round(values.detach().numpy().astype(float) / step)).clip(-51, 204) * step
    assert found.detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert len(found.unique()) == 256
    assert (found == 0).any()
    found.sum().backward()
    assert values.grad is not None
    at = values.detach()
    assert values.grad[(at > step - 1) & (at < 4 - step)].unique().tolist() == [1]
    assert values.grad[(at < -1 - step) | (at > 4 + step)].unique().tolist() == [0]
    assert rounded(torch.zeros(3), 0.0, 0.0).tolist() == [0, 0, 0]
    # a range that lies on one side of zero is widened to hold it
    assert rounded(torch.tensor([0.0]), 2.0, 3.0).item() == 0


def test_ranges_are_the_extremes_of_what_layers_take_in() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    images = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    middle = model[1](model[0](images)).detach()
    assert ranges_of_inputs(model, images) == {
        "0": (pytest.approx(float(images.min())), pytest.approx(float(images.max()))),
        "2": (0.0, pytest.approx(float(middle.max()))),
    }
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nothing_is_left_of_it_but_what_was_learned() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    before, x = copy.deepcopy(model), torch.randn(5, 2)
    with fake_quantised(model, ranges_of_inputs(model, x)):
        assert not torch.equal(model(x), before(x))
    assert torch.equal(model(x), before(x))
    assert model.state_dict().keys() == before.state_dict().keys()
    assert [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
    with pytest.raises(ZeroDivisionError), fake_quantised(model, ranges_of_inputs(model, x)):
        raise ZeroDivisionError
    assert torch.equal(model(x), before(x))


def test_a_model_learns_to_lose_less() -> None:
    """With weights of very different size in one channel, rounding hurts; learning makes up for a part of it."""
    model = load_teacher("digits_vgg7_bn")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                # the largest weight of each channel sets its steps, and is now so large that few are left
                flat = layer.weight.flatten(1)
                flat[torch.arange(len(flat)), flat.abs().argmax(1)] *= 8
    digest = state_digest(model)
    source = open_data("digits")
    few = source.train.load_many(range(0, 1000, 10))
    test = normalised(pixels_of(source.test_or_all().load_many(range(200)), CONFIG), CONFIG)
    calibration = normalised(pixels_of(few, CONFIG), CONFIG)
    learned = learned_in_8_bits(model, few, calibration, CONFIG, steps=60, rate=1e-4)
    assert state_digest(model) == digest
    assert learned.state_dict().keys() == model.state_dict().keys()
    assert not learned.training
    ranges = ranges_of_inputs(model, calibration)

    def error(network: nn.Module) -> float:
        eight_bits = copy.deepcopy(network)
        with fake_quantised(eight_bits, ranges), torch.no_grad():
            return float((eight_bits(test) - model(test)).square().mean())

    assert error(learned) < 0.8 * error(model)
    for name, value in model.state_dict().items():
        if "running" in name:
            assert torch.equal(learned.state_dict()[name], value)
