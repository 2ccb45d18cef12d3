"""Captured rows against NumPy and ``F.unfold``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.deriving.statistics import LayerCall, Moments, capture, input_moments, sampled_rows
from tests.support.derivable import images, network


def call_of(layer: nn.Module, inputs: Tensor) -> LayerCall:
    calls: list[LayerCall] = []
    capture(layer, inputs, {"it": layer}, lambda name, call: calls.append(call))
    (call,) = calls
    return call


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": 1},
    "uneven padding": {"padding": (0, 2)},
    "stride": {"stride": 2, "padding": 1},
    "two strides": {"stride": (1, 2)},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "padding": 1},
    "even kernel": {"kernel_size": (2, 4), "stride": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_rows_of_a_convolution_are_those_of_unfold(options: dict[str, Any]) -> None:
    layer = nn.Conv2d(4, 8, **{"kernel_size": 3, **options})
    x = torch.randn(3, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    call = call_of(layer, x)
    unfolded = F.unfold(
        x, layer.kernel_size, dilation=layer.dilation, padding=options.get("padding", 0), stride=layer.stride
    ).transpose(1, 2)
    rows = torch.tensor([0, 5, call.positions - 1, 7, 7])

    assert call.positions == unfolded.shape[0] * unfolded.shape[1]
    assert torch.equal(call.unfolded_rows(rows), unfolded.flatten(0, 1)[rows])
    assert torch.equal(call.output_rows(rows), layer(x).permute(0, 2, 3, 1).flatten(0, 2)[rows])
    middle = unfolded.flatten(0, 1).unflatten(1, (4, *layer.kernel_size))
    height, width = ((size - 1) // 2 for size in layer.kernel_size)
    assert torch.equal(call.channel_rows(rows), middle[rows, :, height, width])


@torch.no_grad()
@pytest.mark.parametrize("kernel", [3, 4, (2, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_rows_reproduce_a_convolution_that_pads_to_the_same_size(kernel: int, dilation: int) -> None:
    layer = nn.Conv2d(3, 5, kernel, padding="same", dilation=dilation)
    assert layer.bias is not None
    call = call_of(layer, images(2))
    rows = torch.arange(call.positions)
    expected = call.unfolded_rows(rows) @ layer.weight.flatten(1).T + layer.bias

    torch.testing.assert_close(call.output_rows(rows), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_a_linear_layer_are_its_tokens() -> None:
    layer, x = nn.Linear(4, 6), torch.randn(2, 5, 4)
    call = call_of(layer, x)
    rows = torch.tensor([9, 0, 3])

    assert call.positions == 10
    assert torch.equal(call.unfolded_rows(rows), x.reshape(10, 4)[rows])
    assert torch.equal(call.channel_rows(rows), x.reshape(10, 4)[rows])
    torch.testing.assert_close(call.output_rows(rows), layer(x.reshape(10, 4)[rows]))


def test_weights_given_by_name_are_seen() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(input=x, weight=self.layer.weight, stride=2)

    model = Named()
    calls: list[LayerCall] = []
    capture(model, images(), {"layer": model.layer}, lambda _, call: calls.append(call))

    assert calls[0].stride == (2, 2)


def test_a_forward_ends_once_all_layers_have_been_seen(capfd: pytest.CaptureFixture[str]) -> None:
    model = network("plain")
    ran: list[str] = []
    for name in ("1.0", "2.fc"):
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    seen: list[str] = []
    first = {"0.0": model.get_submodule("0.0")}

    capture(model, images(), first, lambda name, call: seen.append(name), stop=True)
    assert (seen, ran) == (["0.0"], [])
    capture(model, images(), first, lambda name, call: seen.append(name))
    assert (seen, ran) == (["0.0", "0.0"], ["1.0", "2.fc"])
    assert capfd.readouterr().err == ""


def test_capturing_leaves_modes_as_they_were() -> None:
    model = network("plain").train()
    capture(model, images(), {"0.0": model.get_submodule("0.0")}, lambda name, call: None, stop=True)

    assert all(module.training for module in model.modules())


def test_moments_are_numpys() -> None:
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 0.1, 0]) + 3
    moments = Moments.empty(5)
    for part in rows.split(60):
        moments.add(part)
    values = rows.numpy().astype(np.float64)

    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        moments.covariance(centred=True), np.cov(values, rowvar=False, bias=True), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(moments.covariance(centred=False), values.T @ values / 200, rtol=1e-6)


def test_features_that_hardly_change_keep_their_digits() -> None:
    rows = 1000 + 0.01 * torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    moments = Moments.empty(3)
    for part in rows.split(1000):
        moments.add(part)
    values = rows.numpy().astype(np.float64)

    np.testing.assert_allclose(
        moments.covariance(centred=True), np.cov(values, rowvar=False, bias=True), rtol=0, atol=1e-6
    )


def test_a_constant_has_no_variance_at_all() -> None:
    moments = Moments.empty(2)
    for _ in range(3):
        moments.add(torch.full((50, 2), 123.456))

    assert torch.equal(moments.covariance(centred=True), torch.zeros(2, 2, dtype=torch.float64))


@torch.no_grad()
def test_moments_of_a_layer_are_of_what_it_takes_in() -> None:
    model = network("plain")
    batches = [images(4, seed=2), images(3, seed=3)]
    found = input_moments(model, batches, {"1.0": model.get_submodule("1.0")})["1.0"]
    taken = model.get_submodule("0")(torch.cat(batches)).movedim(1, -1).reshape(-1, 8).numpy()

    assert found.count == 7 * 64
    np.testing.assert_allclose(found.mean, taken.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.covariance(centred=True), np.cov(taken, rowvar=False, bias=True), atol=1e-5)


def test_more_rows_than_are_wanted_are_sampled() -> None:
    call = call_of(nn.Linear(4, 6), torch.randn(10, 5, 4))
    generator = torch.Generator().manual_seed(0)

    assert torch.equal(sampled_rows(call, 50, generator), torch.arange(50))
    rows = sampled_rows(call, 20, generator)
    assert len(rows) == 20
    assert int(rows.max()) < 50
