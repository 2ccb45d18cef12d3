"""Narrowing in rounds: how far each goes, and that several are one that takes all their channels at once."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.choice import Limit
from netgraft.deriving.costs import Cost, Part
from netgraft.deriving.narrowing import Kept, narrow
from netgraft.deriving.rounds import composed, correspondence, rounds_to
from tests.support.derivable import NETWORKS, images, network
from tests.support.random_models import build


def limit(name: str, whole: float, most: float) -> Limit:
    return Limit(name, Cost([Part((), lambda widths: whole)]), most)


@pytest.mark.parametrize(("part", "count"), [(0.9, 1), (0.8, 1), (0.79, 2), (0.64, 2), (0.5, 4), (0.1, 11)])
def test_as_many_rounds_as_leave_four_fifths_in_each(part: float, count: int) -> None:
    rounds = rounds_to([limit("macs", 1000.0, 1000 * part)])
    spent = [1000.0, *(each.most for [each] in rounds)]
    assert len(rounds) == count
    assert spent[-1] == 1000 * part, "the last one keeps what was asked for, to the bit"
    left = [after / before for before, after in pairwise(spent)]
    assert left == pytest.approx([part ** (1 / count)] * count)
    assert min(left) >= 0.8 - 1e-9


def test_rounds_that_are_asked_for_and_several_limits() -> None:
    limits = [limit("macs", 100.0, 25.0), limit("parameters", 10.0, 9.0)]
    rounds = rounds_to(limits, 2)
    assert [[each.name for each in some] for some in rounds] == [["macs", "parameters"]] * 2
    assert [[each.most for each in some] for some in rounds] == [
        pytest.approx([50.0, 10 * math.sqrt(0.9)]),
        [25.0, 9.0],
    ]
    assert len(rounds_to(limits)) == 7, "as many as the tighter one takes"
    assert rounds_to([]) == [[]]


def some_channels(anatomy: Anatomy, generator: torch.Generator) -> Kept:
    kept = {}
    for place in anatomy.all_places:
        width = int(torch.randint((place.width + 1) // 2, place.width + 1, (), generator=generator))
        kept[place.atom] = torch.randperm(place.width, generator=generator)[:width].sort().values
    if anatomy.blocks:
        kept[anatomy.blocks[0].atom] = torch.arange(0)
    return kept


def agree(model: nn.Module, size: int) -> int:
    """Compare two rounds with one; return how many places the second one narrowed."""
    generator = torch.Generator().manual_seed(0)
    probe = images(2, side=size)
    teacher = Anatomy.of(model, probe)
    first = some_channels(teacher, generator)
    narrowed = narrow(model, teacher.found, first, teacher.blocks).eval()
    second = Anatomy.of(narrowed, probe)
    of_teacher = correspondence(second, teacher)
    further = {atom: some for atom, some in some_channels(second, generator).items() if atom in of_teacher}

    twice = narrow(narrowed, second.found, further, second.blocks).eval()
    once = narrow(model, teacher.found, composed(first, further, of_teacher), teacher.blocks).eval()
    with torch.no_grad():
        if teacher.found.by_width or teacher.found.response_norms:  # scaled twice, or once by the product
            torch.testing.assert_close(twice(probe), once(probe), rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(twice(probe), once(probe))
    assert {name: value.shape for name, value in twice.state_dict().items()} == {
        name: value.shape for name, value in once.state_dict().items()
    }
    return len(further)


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "shuffle"])
def test_two_rounds_are_one_that_takes_the_channels_of_both(kind: str) -> None:
    assert agree(network(kind), 8)


@pytest.mark.parametrize(("name", "size"), [("mobilenetv3_small_050", 32), ("cifar_resnet20", 32), ("test_vit", 64)])
def test_models_that_people_use_are_narrowed_in_rounds(name: str, size: int) -> None:
    options = {"img_size": size} if "vit" in name else {}
    assert agree(build(name, num_classes=7, **options), size) > 3


def test_places_are_told_apart_whatever_else_has_gone() -> None:
    # of the groups of a convolution one is left, so that the channels within them are its first place now
    model = network("grouped")
    probe = images(2, side=8)
    teacher = Anatomy.of(model, probe)
    named = {place.name: place for place in teacher.places}
    numbered = next(place for name, place in named.items() if name.endswith("#2"))
    plain = named[numbered.name.removesuffix("#2")]
    narrowed = narrow(model, teacher.found, {plain.atom: torch.arange(1)}, teacher.blocks).eval()
    second = Anatomy.of(narrowed, probe)
    of_teacher = correspondence(second, teacher)
    sizes = {theirs: ours.size for ours, theirs in of_teacher.items()}
    assert plain.atom not in sizes
    assert all(size == theirs.size for theirs, size in sizes.items()), "nothing else was narrowed"
