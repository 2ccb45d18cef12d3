"""Milliseconds are reckoned from times of layers: with a stopwatch whose times are known, as exactly as those."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.costs import Macs
from netgraft.deriving.latency import Milliseconds
from netgraft.deriving.narrowing import narrow
from netgraft.modules import flop_counter


def products(model: nn.Module, inputs: Tensor) -> float:
    """A stopwatch on a machine that takes a millisecond for a million products."""
    with flop_counter() as counter, torch.no_grad():
        model(inputs)
    return counter.get_total_flops() / 2 / 1e6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), Residual(), nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_the_whole_is_reckoned_from_its_layers(share: float) -> None:
    teacher, probe = model(), torch.randn(1, 3, 16, 16)
    anatomy = Anatomy.of(teacher, probe)
    reckoned = Milliseconds(anatomy, products, products(teacher, probe))
    widths = {place.atom: int(share * place.width) for place in anatomy.places}
    kept = {atom: torch.arange(width) for atom, width in widths.items()}
    # linear in each layer's inputs and outputs, so interpolation is exact where both are fractions that were timed
    assert reckoned(widths) == pytest.approx(products(narrow(teacher, anatomy.found, kept), probe), rel=1e-9)


def test_what_is_no_layer_costs_what_it_costs_in_the_teacher() -> None:
    teacher, probe = model(), torch.randn(1, 3, 16, 16)
    anatomy = Anatomy.of(teacher, probe)
    layers = Macs(anatomy.found)({}) / 1e6
    assert Milliseconds(anatomy, products, layers + 5)({}) == pytest.approx(layers + 5)
    smallest = {place.atom: 1 for place in anatomy.places}
    assert Milliseconds(anatomy, products, layers + 5)(smallest) > 5


def test_a_block_that_is_left_out_takes_no_time() -> None:
    teacher, probe = model(), torch.randn(1, 3, 16, 16)
    anatomy = Anatomy.of(teacher, probe)
    [block] = anatomy.blocks
    reckoned = Milliseconds(anatomy, products, products(teacher, probe))
    without = narrow(teacher, anatomy.found, {block.atom: torch.arange(0)}, anatomy.blocks)
    assert reckoned({block.atom: 0}) == pytest.approx(products(without, probe))
