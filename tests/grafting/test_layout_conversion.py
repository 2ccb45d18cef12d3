"""Bridges and adapters against loops over single places."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.grafting.adapters import (
    Adapter,
    ConvertingAdapter,
    LinearAdapter,
    Projection,
    between,
    projection,
)
from netgraft.grafting.layout_conversion import LayoutConversion, describe_form, form_of, holds_map, resized
from netgraft.splitting.chain import Cut
from netgraft.splitting.layouts import Layout
from tests.support.random_models import images

Array = NDArray[np.float64]

CHANNELS = 3


FORMS = [
    Layout("NCHW", (4, 6)),
    Layout("NCHW", (2, 9)),
    Layout("NHWC", (4, 6)),
    Layout("NHWC", (7, 5)),
    Layout("tokens", (4, 6)),
    Layout("tokens", (4, 6), 1),
    Layout("tokens", (3, 3), 2),
    Layout("tokens", (8, 12), 5),
    Layout("tokens", (1, 1), 1),
]


def state(form: Layout, batch: int = 2, channels: int = CHANNELS, seed: int = 0) -> Tensor:
    height, width = form.size
    shapes = {
        "NCHW": (batch, channels, height, width),
        "NHWC": (batch, height, width, channels),
        "tokens": (batch, form.prefix_tokens + height * width, channels),
    }
    return images(*shapes[form.kind], seed=seed).double()


def pixel(form: Layout, x: Array, y: int, column: int) -> Array:
    """The channels (B, C) at one place of the map."""
    if form.kind == "NCHW":
        return x[:, :, y, column]
    if form.kind == "NHWC":
        return x[:, y, column]
    return x[:, form.prefix_tokens + y * form.size[1] + column]


def weights(source: int, target: int) -> Array:
    """What each old row of a map counts in each new one: by areas where there are fewer, else by distances."""
    table = np.zeros((target, source))
    for row in range(target):
        if target <= source:
            covered = range(math.floor(row * source / target), math.ceil((row + 1) * source / target))
            for old in covered:
                table[row, old] = 1 / len(covered)
        else:
            # the middle of a new row lies between the middles of two old ones, or beyond the first or last
            place = min(max((row + 0.5) * source / target - 0.5, 0), source - 1)
            below = min(math.floor(place), source - 1)
            table[row, below] += 1 - (place - below)
            table[row, min(below + 1, source - 1)] += place - below
    return table


def expected(x: Array, source: Layout, target: Layout) -> Array:
    """Convert place by place."""
    rows, columns = weights(source.size[0], target.size[0]), weights(source.size[1], target.size[1])
    result = np.full(tuple(state(target).shape), np.nan)
    for y, column in itertools.product(*map(range, target.size)):
        value = np.zeros((len(x), CHANNELS))
        for old_y, old_column in itertools.product(*map(range, source.size)):
            value += rows[y, old_y] * columns[column, old_column] * pixel(source, x, old_y, old_column)
        pixel(target, result, y, column)[:] = value
    places = list(itertools.product(*map(range, source.size)))
    for number in range(target.prefix_tokens):
        if number < source.prefix_tokens:
            result[:, number] = x[:, number]
        else:
            result[:, number] = sum(pixel(source, x, *place) for place in places) / len(places)
    return result


@pytest.mark.parametrize("source", FORMS, ids=describe_form)
@pytest.mark.parametrize("target", FORMS, ids=describe_form)
def test_every_form_becomes_every_other_as_it_does_place_by_place(source: Layout, target: Layout) -> None:
    x = state(source)
    got = LayoutConversion(source, target)(x)
    np.testing.assert_allclose(got.numpy(), expected(x.numpy(), source, target), rtol=0, atol=1e-12)
    assert target.kind == "NCHW" or got.is_contiguous(), "blocks may view what they are given"


@pytest.mark.parametrize("middle", [Layout("NCHW", (4, 6)), Layout("NHWC", (4, 6)), Layout("tokens", (4, 6), 1)])
def test_there_and_back_is_exact_where_sizes_are_equal(middle: Layout) -> None:
    for form in (Layout("tokens", (4, 6)), Layout("NHWC", (4, 6)), Layout("NCHW", (4, 6))):
        x = state(form)
        assert torch.equal(LayoutConversion(middle, form)(LayoutConversion(form, middle)(x)), x)


def test_a_class_token_comes_through_whatever_happens_to_the_map() -> None:
    source, target = Layout("tokens", (4, 6), 2), Layout("tokens", (2, 2), 1)
    x = state(source)
    assert torch.equal(LayoutConversion(source, target)(x)[:, 0], x[:, 0])


def test_a_map_of_the_right_size_is_left_alone() -> None:
    x = images(2, 3, 4, 6)
    assert resized(x, (4, 6)) is x


@pytest.mark.parametrize("other", [Layout("other"), Layout("tuple"), Layout("tokens")])
def test_what_is_no_map_has_no_conversion(other: Layout) -> None:
    with pytest.raises(ValueError, match="expected two forms that hold a map"):
        LayoutConversion(FORMS[0], other)
    with pytest.raises(ValueError, match="expected two forms that hold a map"):
        LayoutConversion(other, FORMS[0])


def cut(form: Layout, channels: int) -> Cut:
    shape = tuple(state(form, channels=channels).shape[1:])
    grid = form.size if form.kind == "tokens" else ()
    return Cut("somewhere", shape, form.kind, grid, form.prefix_tokens)


@pytest.mark.parametrize("form", FORMS, ids=describe_form)
def test_a_cut_tells_its_form(form: Layout) -> None:
    assert form_of(cut(form, 5)) == form
    assert holds_map(cut(form, 5))
    assert not holds_map(Cut("a", (), "tuple"))
    assert not holds_map(Cut("a", (7, 5), "other"))


def mixed(mix: nn.Module, form: Layout, x: Tensor) -> Tensor:
    """A matrix at each place."""
    assert isinstance(mix.weight, Tensor)
    matrix = mix.weight.flatten(1)
    return torch.einsum("oi,bihw->bohw" if form.kind == "NCHW" else "oi,b...i->b...o", matrix, x)


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize(("source", "target"), list(itertools.combinations(FORMS, 2)), ids=describe_form)
def test_an_adapter_is_a_conversion_and_a_matrix_at_each_position(source: Layout, target: Layout, own: int) -> None:
    torch.manual_seed(0)
    ends = cut(source, CHANNELS), cut(target, 4)
    adapter = between(*ends, projection(ends[own].layout, CHANNELS, 4), own=ends[own]).double()
    assert isinstance(adapter, ConvertingAdapter)
    x = state(source)
    got, wanted = adapter(x), mixed(adapter.projection, target, LayoutConversion(source, target)(x))
    carried, prefix = min(source.prefix_tokens, target.prefix_tokens), target.prefix_tokens
    overlapping = any(old > new and old % new for old, new in zip(source.size, target.size, strict=True))
    if overlapping and prefix > carried:
        # tokens that are made of the averaged map; a mean of channels is within them
        assert got[:, carried:prefix].sub(wanted[:, carried:prefix]).abs().max() < 0.2 * x.abs().max()
        got, wanted = (torch.cat([y[:, :carried], y[:, prefix:]], dim=1) for y in (got, wanted))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    assert adapter.projection.weight is adapter.weight
    assert adapter.conversion == f"it converts {describe_form(source)} to {describe_form(target)}"
    assert sum(p.numel() for p in adapter.parameters()) == CHANNELS * 4


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(FORMS, 2)), ids=describe_form)
def test_the_matrix_is_applied_to_the_smaller_map(source: Layout, target: Layout) -> None:
    adapter = between(cut(source, 3), cut(target, 4), Adapter(3, 4), own=cut(Layout("NCHW", target.size), 4))
    if not isinstance(adapter, ConvertingAdapter):
        return
    seen: list[Tensor] = []
    adapter.projection.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    adapter(state(source).float())
    assert seen[0].shape[2] * seen[0].shape[3] == min(math.prod(source.size), math.prod(target.size))


@pytest.mark.parametrize("form", FORMS, ids=describe_form)
def test_equal_forms_need_no_more_than_a_projection(form: Layout) -> None:
    ends = cut(form, 3), cut(form, 4)
    mix = projection(form.kind, 3, 4)
    assert between(*ends, mix, own=ends[1]) is mix
    assert isinstance(mix, Adapter if form.kind == "NCHW" else LinearAdapter)


def test_a_linear_adapter_is_the_convolution_on_the_permuted_map() -> None:
    torch.manual_seed(0)
    adapter = LinearAdapter(5, 4, "NHWC")
    x = images(2, 6, 7, 5)
    wanted = F.conv2d(x.permute(0, 3, 1, 2), adapter.weight[:, :, None, None]).permute(0, 2, 3, 1)
    torch.testing.assert_close(adapter(x), wanted)
    assert adapter.bias is None


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
def test_projections_start_as_the_identity_where_widths_are_equal(layout: str) -> None:
    mix: Projection = projection(layout, 5, 5)
    x = images(2, 5, 5, 5)
    assert torch.equal(mix(x), x)
    assert not torch.equal(projection(layout, 5, 4).weight, projection(layout, 5, 4).weight)


@pytest.mark.parametrize("layout", ["NCHW", "other"])
def test_linear_adapters_are_for_layouts_with_channels_last(layout: str) -> None:
    with pytest.raises(ValueError, match="layout must be NHWC or tokens, where channels come last"):
        LinearAdapter(5, 4, layout)
