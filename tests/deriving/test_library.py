"""Each place tried alone: against a copy with the same weights, and what is written and read."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.library import Library, readers_of, score_widths
from netgraft.deriving.selection import kept_channels
from netgraft.deriving.solving import narrowed_start
from netgraft.errors import RequestError
from tests.support.derivable import NETWORKS, Head, conv, images, network


def made(model: nn.Module, views: int = 24) -> tuple[Anatomy, Library]:
    anatomy = Anatomy.of(model, images())
    readers = readers_of(anatomy, [images(views, seed=5)])
    return anatomy, Library(tuple(score_widths(anatomy, readers, images(16, seed=6), sizes=3)), (views, 16))


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_errors_are_those_of_a_model_that_is_really_narrowed(kind: str) -> None:
    model = network(kind)
    before = copy.deepcopy(model.state_dict())
    anatomy, library = made(model)
    held_back = images(16, seed=6)
    readers = readers_of(anatomy, [images(24, seed=5)])
    logits = model(held_back)

    for entry in library.entries:
        assert entry.widths == (*entry.place.widths(3), entry.place.width)
        assert entry.errors[-1] == 0
        kept = {entry.place.atom: kept_channels(entry.removal.order, entry.widths[0])}
        got = narrowed_start(anatomy, readers, kept)(held_back)
        expected = (got - logits).square().mean() / logits.var(0, unbiased=False).mean()
        assert entry.errors[0] == pytest.approx(float(expected), rel=1e-3, abs=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_all_widths_may_be_chosen_and_none_is_better_than_a_wider_one() -> None:
    _, library = made(network("plain"))
    for entry in library.entries:
        options = entry.options()
        assert options.widths == (*entry.place.widths(entry.place.width), entry.place.width)
        assert all(a >= b for a, b in zip(options.errors, options.errors[1:], strict=False))
        assert options.errors[-1] == 0
        for width, error in zip(entry.widths, entry.errors, strict=True):
            assert options.errors[options.widths.index(width)] >= error * (1 - 1e-9)


def test_errors_of_widths_that_were_not_tried_are_nearly_those_that_are_measured() -> None:
    model = wide()
    anatomy = Anatomy.of(model, images())
    readers = readers_of(anatomy, [images(64, seed=5)])
    few, all_of_them = (
        next(entry for entry in score_widths(anatomy, readers, images(32, seed=6), sizes=sizes)) for sizes in (4, 1000)
    )
    assert len(few.widths) < len(all_of_them.widths) == len(few.options().widths)
    guessed = dict(zip(few.options().widths, few.options().errors, strict=True))
    measured = dict(zip(all_of_them.widths, all_of_them.errors, strict=True))
    # half of the channels are dead: the error falls to nothing between two widths that were tried
    assert min(measured[width] for width in measured if width < 28) > 1e-4
    assert max(measured[width] for width in measured if width > 32) < 1e-9
    for width in (each for each in measured if each < 28):
        assert guessed[width] == pytest.approx(measured[width], rel=0.6)
    assert max(guessed[width] for width in guessed if width > 32) < 1e-6


def wide() -> nn.Module:
    """A network whose first layer has 64 channels, of which 32 never answer."""
    torch.manual_seed(3)
    model = nn.Sequential(conv(3, 64), conv(64, 8), Head(8)).eval()
    with torch.no_grad():
        model.get_parameter("0.1.weight")[32:] = 0
        model.get_parameter("0.1.bias")[32:] = -1
        model.get_parameter("0.1.bias")[:32] = torch.randn(32)
    return model


def test_a_library_is_read_as_it_was_written() -> None:
    anatomy, library = made(network("residual"))
    again = Library.from_json(json.loads(json.dumps(library.to_json())), anatomy.all_places)

    assert str(again) == str(library)
    assert again.views == library.views
    for old, new in zip(library.entries, again.entries, strict=True):
        assert (new.widths, new.errors) == (old.widths, old.errors)
        assert torch.equal(new.removal.order, old.removal.order)
        assert torch.allclose(new.removal.losses, old.removal.losses, rtol=1e-4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.clear(),
        lambda value: value["places"].pop(),
        lambda value: value["places"][0].update(place="elsewhere"),
        lambda value: value["places"][0]["order"].pop(),
        lambda value: value["places"][0].update(order=[0.0, *value["places"][0]["order"][1:]]),
        lambda value: value["places"][0].update(order=["0"]),
        lambda value: value["places"][0].update(order=None),
        lambda value: value["places"][0].pop("losses"),
        lambda value: value["places"][0]["losses"].pop(),
        lambda value: value["places"][0]["losses"].__setitem__(0, float("nan")),
        lambda value: value["places"][0].update(widths=[], errors=[]),
        lambda value: value["places"][0].update(widths=value["places"][0]["widths"][::-1]),
        lambda value: value["places"][0]["widths"].__setitem__(0, 1.5),
        lambda value: value["places"][0]["widths"].__setitem__(0, -1),
        lambda value: value["places"][0]["errors"].__setitem__(0, float("nan")),
        lambda value: value["places"][0]["errors"].__setitem__(0, "much"),
        lambda value: value["places"][0].pop("errors"),
        lambda value: value.update(places=5),
        lambda value: value.update(views=[1]),
    ],
)
def test_a_damaged_library_is_refused_in_a_sentence(damage: Any) -> None:
    anatomy, library = made(network("plain"))
    value = json.loads(json.dumps(library.to_json()))
    damage(value)

    with pytest.raises(RequestError, match=r"^this library is .*; make it anew$"):
        Library.from_json(value, anatomy.all_places)


def test_values_that_are_no_numbers_are_refused_in_a_sentence() -> None:
    model = network("plain")
    model.get_parameter("0.1.weight").data.fill_(3e38)
    anatomy = Anatomy.of(model, images())

    with pytest.raises(RequestError, match="takes in values that are no finite numbers"):
        readers_of(anatomy, [images(8) * 1e10])


def test_logits_that_are_no_numbers_are_refused_in_a_sentence() -> None:
    model = network("plain")
    anatomy = Anatomy.of(model, images())
    readers = readers_of(anatomy, [images(8)])

    with pytest.raises(RequestError, match="the teacher's logits are no finite numbers"):
        next(score_widths(anatomy, readers, images(4) * 1e38))


def test_dead_and_constant_features_give_finite_errors() -> None:
    model = network("plain")
    for norm in ("0.1", "1.1"):
        model.get_parameter(f"{norm}.weight").data[:4] = 0
        model.get_parameter(f"{norm}.bias").data[:2] = -1
        model.get_parameter(f"{norm}.bias").data[2:4] = 2
    _, library = made(model, views=1)

    for entry in library.entries:
        assert all(error >= 0 and error < float("inf") for error in entry.errors)
