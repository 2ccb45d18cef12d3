"""Convolutions as two each: proven, in principal bases, priced, and one again where two don't pay."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn

import netgraft
from netgraft import modules
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.derivation import Derivation, Deriver
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.budget import budget_of
from netgraft.deriving.costs import Macs, Parameters
from netgraft.deriving.latency import Milliseconds
from netgraft.deriving.low_rank import LowRank, factor, join_dear_ones, low_rank_layers, pays
from netgraft.deriving.narrowing import narrow
from netgraft.deriving.options import DerivingOptions
from netgraft.deriving.rank_bases import with_low_rank
from netgraft.deriving.turning import turned
from netgraft.modules import flop_counter
from tests.support.derivable import CLASSES, Head, conv, images, network, randomised

CONFIG = {
    "input_size": (3, 8, 8),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def of_rank(layer: nn.Module, rank: int) -> None:
    """Leave a convolution so many independent outputs, and give its channels larger and smaller ones."""
    assert isinstance(layer, nn.Conv2d)
    generator = torch.Generator().manual_seed(7)
    flat = layer.weight.detach().flatten(1)
    mixed = torch.randn(len(flat), rank, generator=generator) @ flat[:rank]
    with torch.no_grad():
        layer.weight.copy_((mixed / rank**0.5).reshape(layer.weight.shape))


def vgg(*, rank: int | None = None) -> nn.Module:
    model = randomised(nn.Sequential(conv(3, 24), conv(24, 32), nn.MaxPool2d(2), conv(32, 24), Head(24)))
    if rank is not None:
        of_rank(model.get_submodule("1.0"), rank)
    return model


def counted(model: nn.Module) -> int:
    with torch.no_grad(), flop_counter() as counter:
        model(images(1))
    return counter.get_total_flops() // 2


def derived(teacher: nn.Module, keep: float, **options: object) -> Derivation:
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(40)]
    views = Views.configured(pictures, VIEW_POLICIES["plain"], CONFIG, seed=0)
    asked = DerivingOptions(**options)  # type: ignore[arg-type]
    return Deriver(teacher, views, CONFIG, options=asked).derive(budget_of({"macs": keep}))


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_two_compute_what_one_did(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=bias)
    both, x = LowRank.of(layer), torch.randn(4, 6, 9, 9)
    assert torch.equal(both(x), layer(x))
    assert torch.equal(both.joined()(x), layer(x))

    first, second = both.both
    first.weight, second.weight = nn.Parameter(first.weight[:4]), nn.Parameter(torch.randn(10, 4, 1, 1))
    joined = both.joined()
    torch.testing.assert_close(joined(x), both(x), rtol=1e-5, atol=1e-5)
    assert (joined.in_channels, joined.out_channels, joined.bias is None) == (6, 10, not bias)
    assert joined.weight.requires_grad


def test_two_pay_where_they_have_fewer_weights() -> None:
    for rank in (1, 7, 24, 25, 40):
        layer = nn.Sequential(nn.Conv2d(5, rank, 3, bias=False), nn.Conv2d(rank, 32, 1, bias=False))
        assert pays(rank, 45, 32) == (modules.parameters(layer) < 45 * 32)


class Standardised(nn.Module):
    """Its convolutions can't be two: of standardised weights, grouped, called twice, looked into, 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.standardised = ScaledStdConv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.looked_into = nn.Conv2d(16, 16, 3, padding=1)
        self.small = nn.Conv2d(16, 16, 1)
        self.free = nn.Conv2d(16, 24, 3, padding=1)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.standardised(x))))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        x = self.looked_into(x) / self.looked_into.weight.abs().mean()
        return self.head(torch.relu(self.free(torch.relu(self.small(x)))))


@torch.no_grad()
def test_only_what_is_proven_becomes_two() -> None:
    torch.manual_seed(0)
    model = Standardised().eval()
    before = copy.deepcopy(model)
    factored = with_low_rank(model, images())
    assert low_rank_layers(factored) == ["free"]
    assert low_rank_layers(model) == []
    assert torch.equal(factored(images()), before(images()))
    mixer = network("transformer")
    mixer.get_submodule("embed").register_forward_pre_hook(lambda *_: None)
    assert low_rank_layers(with_low_rank(mixer, images())) == ["embed"]
    without = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).eval()
    assert with_low_rank(without, images()) is without


class Failing(nn.Module):
    """Runs in single precision alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = vgg()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("no float64")
        return self.body(x)


def test_a_model_that_can_not_be_asked_is_left_as_it_is() -> None:
    broken = vgg()
    with torch.no_grad():
        broken.get_submodule("1.0").get_parameter("weight")[0] = torch.nan
    for model in (broken, Failing()):
        assert with_low_rank(model, images()) is model


def test_what_is_two_already_is_not_made_four() -> None:
    once = with_low_rank(vgg(), images())
    again = with_low_rank(once, images())
    assert low_rank_layers(again) == low_rank_layers(once) == ["0.0", "1.0", "3.0"]


@torch.no_grad()
def test_what_lies_between_is_turned_to_the_principal_directions_of_the_outputs() -> None:
    model, views = vgg(), images(60, seed=3)
    other = turned(Anatomy.of(with_low_rank(model, images()), images()), [views])
    torch.testing.assert_close(other.model(views), model(views), rtol=1e-4, atol=1e-4)

    given: list[Tensor] = []
    model.get_submodule("1.0").register_forward_hook(lambda _, inputs, output: given.append(output.double()))
    model(views)
    rows = given[0].movedim(1, -1).flatten(0, 2).numpy()
    expected = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]

    both = other.model.get_submodule("1.0")
    assert isinstance(both, LowRank)
    first, second = both.both
    taken: list[Tensor] = []
    first.register_forward_hook(lambda _, inputs, output: taken.append(output.double()))
    other.model(views)
    between = taken[0].movedim(1, -1).flatten(0, 2).numpy()
    written = second.weight.flatten(1).double().numpy()
    centred = between - between.mean(0)
    for rank in (4, 16, 31):
        # no other so many channels, and no other second convolution, come nearer (Eckart & Young, 1936)
        missed = np.square(rows - rows.mean(0) - centred[:, :rank] @ written[:, :rank].T).sum(1).mean()
        assert missed == pytest.approx(expected[rank:].sum(), rel=0.02)


@torch.no_grad()
def test_costs_are_those_of_the_cheaper_form() -> None:
    model = vgg()
    anatomy = Anatomy.of(with_low_rank(model, images()), images())
    macs, parameters = Macs(anatomy.found), Parameters(anatomy.found, anatomy.model)
    assert (macs({}), parameters({})) == (counted(model), modules.parameters(model))
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        widths = {p.atom: int(torch.randint(1, p.width + 1, (), generator=generator)) for p in anatomy.places}
        student = narrow(anatomy.model, anatomy.found, {atom: torch.arange(n) for atom, n in widths.items()})
        join_dear_ones(student)
        seen.add(len(low_rank_layers(student)))
        assert macs(widths) == counted(student)
        assert parameters(widths) == modules.parameters(student)
    assert len(seen) > 1, "some pay as two and some don't"


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_milliseconds_are_reckoned_of_the_cheaper_form(share: float) -> None:
    def stopwatch(model: nn.Module, inputs: Tensor) -> float:
        with flop_counter() as counter, torch.no_grad():
            model(inputs)
        return counter.get_total_flops() / 2 / 1e6

    model, probe = vgg(), images(1)
    anatomy = Anatomy.of(with_low_rank(model, images()), images())
    reckoned = Milliseconds(anatomy, stopwatch, stopwatch(model, probe))
    widths = {place.atom: int(share * place.width) for place in anatomy.places}
    student = narrow(anatomy.model, anatomy.found, {atom: torch.arange(width) for atom, width in widths.items()})
    join_dear_ones(student)
    assert reckoned(widths) == pytest.approx(stopwatch(student, probe), rel=1e-9)


def test_places_keep_the_names_of_the_convolutions() -> None:
    whole, both = vgg(), with_low_rank(vgg(), images())
    names = [place.name for place in Anatomy.of(both, images()).places]
    ranks = [name for name in names if name.endswith(".rank")]
    assert [name for name in names if name not in ranks] == [p.name for p in Anatomy.of(whole, images()).places]
    assert ranks == ["0.0.rank", "1.0.rank", "3.0.rank"]
    widest = {place.name: place.widths(100)[-1] for place in Anatomy.of(both, images()).places}
    # from 27 inputs 24 outputs: 12 channels between would cost 12 * 51 of 648, 13 cost more
    assert widest["0.0.rank"] == 8
    assert widest["1.0.rank"] == 24
    assert all(pays(widest[name], *sizes) for name, sizes in {"0.0.rank": (27, 24), "3.0.rank": (288, 24)}.items())


@torch.no_grad()
def test_outputs_of_few_dimensions_become_two_without_an_error(tmp_path: Path) -> None:
    teacher = vgg(rank=8)
    found = Anatomy.of(with_low_rank(teacher, images()), images())
    cost = Macs(found.found)
    [place] = [place for place in found.places if place.name == "1.0.rank"]
    part = cost({place.atom: 8}) / cost({})
    made = derived(teacher, part + 1e-6)
    assert made.choice.to_json()["narrowed"] == {"1.0.rank": [32, 8]}
    assert made.error < 1e-8
    assert low_rank_layers(made.student) == ["1.0"]
    assert made.choice.costs["macs"][1] == counted(made.student)

    less = derived(teacher, part + 1e-6, convolutions="whole")
    assert low_rank_layers(less.student) == []
    assert less.error > 1e3 * made.error


@torch.no_grad()
@pytest.mark.parametrize("keep", [0.7, 0.5])
def test_a_student_opens_with_the_same_bits_and_can_be_a_teacher(tmp_path: Path, keep: float) -> None:
    teacher = netgraft.load_teacher("digits_vgg7_bn")
    pictures = netgraft.open_data("digits").train.load_many(range(20))
    made = netgraft.derive(teacher, pictures, keep={"macs": keep})
    assert low_rank_layers(made.student)
    made.save(tmp_path / "student")
    opened = netgraft.load_student(tmp_path / "student")
    probe = torch.rand(5, 1, 8, 8)
    assert torch.equal(opened(probe), made.student(probe))

    smaller = netgraft.derive(opened, pictures, keep={"macs": 0.8})
    before, after = smaller.choice.costs["macs"]
    assert before == made.choice.costs["macs"][1]
    assert after <= 0.8 * before
    assert smaller.error < 0.2


def test_a_record_of_other_layers_is_refused(tmp_path: Path) -> None:
    teacher = netgraft.load_teacher("digits_vgg7_bn")
    for name in ("nowhere", "head.fc", ""):
        with pytest.raises(ValueError, match=rf"there is no convolution '{name}' of one group to be made two"):
            factor(teacher, [name])


def test_what_others_do_has_whole_convolutions() -> None:
    teacher = vgg(rank=8)
    for options in ({"allocation": "uniform"}, {"criterion": "weight-norm"}, {"convolutions": "whole"}):
        assert low_rank_layers(derived(teacher, 0.4, **options).student) == []
    for allocation in ("greedy", "knapsack"):
        assert low_rank_layers(derived(teacher, 0.4, allocation=allocation).student)
