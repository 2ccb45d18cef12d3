"""Heads that become narrower: proven against zeros, scored, counted, solved, saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import Attention
from torch import nn

import netgraft
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.derivation import Deriver
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.budget import budget_of
from netgraft.deriving.costs import Macs, Parameters
from netgraft.deriving.head_losses import losing_at
from netgraft.deriving.library import readers_of, score_widths
from netgraft.deriving.narrowing import Kept, narrow, without
from netgraft.deriving.options import DerivingOptions
from netgraft.deriving.places import Place
from netgraft.deriving.selection import kept_channels, surgeon_removal
from netgraft.deriving.solving import narrowed_start, solve_front_to_back
from netgraft.deriving.turning import turned
from netgraft.deriving.twins import widths_like
from netgraft.models.students import save_student
from netgraft.modules import flop_counter, parameters
from tests.support.attention import Apart, OfPatches, apart, redundant, swin, vit
from tests.support.derivable import CLASSES, images, randomised

MODELS: dict[str, tuple[Callable[[], nn.Module], int, dict[str, int]]] = {
    "vit": (vit, 8, {"blocks.0.attn.qkv#2": 16, "blocks.1.attn.qkv#2": 16}),
    "swin": (
        swin,
        16,
        {f"layers.{at}.attn.qkv#2": w for at, w in (("0.blocks.0", 8), ("0.blocks.1", 8), ("1.blocks.0", 16))},
    ),
    "apart": (apart, 8, {"attn.q#2": 8, "attn.v": 6}),
    "said": (lambda: apart(said=True), 8, {"attn.q#2": 8}),
    "its own scale": (lambda: apart(by_width=False), 8, {"attn.q#2": 8, "attn.v": 6}),
}


def anatomy_of(kind: str) -> tuple[Anatomy, list[Place], int]:
    make, side, expected = MODELS[kind]
    anatomy = Anatomy.of(make(), images(2, side=side))
    wide = [place for place in anatomy.places if place.atom in anatomy.found.widths]
    assert {place.name: place.width for place in wide} == expected
    return anatomy, wide, side


def by_kernel(model: nn.Module, fused: bool) -> None:
    """Let timm's attention go by a fused kernel, or by single products."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010  (mypy takes it for a tensor)


def random_channels(places: list[Place], generator: torch.Generator) -> Kept:
    kept = {}
    for place in places:
        count = int(torch.randint(1, place.width, (), generator=generator))
        kept[place.atom] = torch.randperm(place.width, generator=generator)[:count].sort().values
    return kept


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_narrower_heads_compute_what_zeros_do(kind: str) -> None:
    anatomy, wide, side = anatomy_of(kind)
    model, probe = copy.deepcopy(anatomy.model).double(), images(3, side=side).double()
    generator = torch.Generator().manual_seed(2)
    # of widths alone, and together with whole heads and all else
    for places in (wide, list(anatomy.places)):
        kept = random_channels(places, generator)
        got, expected = (each(model, anatomy.found, kept)(probe) for each in (narrow, without))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
        assert not torch.allclose(expected, model(probe), rtol=1e-4)


def test_queries_are_scaled_where_the_width_divides_and_nowhere_else() -> None:
    assert len(anatomy_of("vit")[0].found.by_width) == 2
    assert len(anatomy_of("apart")[0].found.by_width) == 1
    assert not anatomy_of("its own scale")[0].found.by_width


def test_modules_of_one_class_may_divide_logits_differently() -> None:
    for number in range(2):
        attention = nn.Sequential(*(Apart(12, 8, 6, by_width=at == number) for at in range(2)))
        anatomy = Anatomy.of(randomised(OfPatches(attention)), images())
        wide = [place for place in anatomy.places if place.logits]
        assert [place.name for place in wide] == ["attn.0.q#2", "attn.1.q#2"]
        assert [place.name for place in wide if place.atom in anatomy.found.by_width] == [f"attn.{number}.q#2"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_narrower_heads_compute_the_same_by_either_kernel(kind: str) -> None:
    # timm's modules divide logits by a number of their own, or leave it to a fused kernel that goes by the width
    anatomy, wide, side = anatomy_of(kind)
    narrowed = narrow(anatomy.model.double(), anatomy.found, {place.atom: torch.arange(3) for place in wide}).eval()
    probe, answers = images(2, side=side).double(), []
    for fused in (True, False):
        by_kernel(narrowed, fused)
        answers.append(narrowed(probe))
    torch.testing.assert_close(*answers, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "model",
    [
        lambda: apart(rotated=True),
        lambda: randomised(OfPatches(Attention(12, num_heads=2, qk_norm=True, norm_layer=nn.LayerNorm))),
        lambda: apart(shared=True),
    ],
    ids=["rotated", "normed", "shared"],
)
def test_queries_whose_channels_mix_stay_whole(model: Callable[[], nn.Module]) -> None:
    anatomy = Anatomy.of(model(), images())
    assert not any(place.logits for place in anatomy.places)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "apart", "its own scale"])
def test_errors_are_those_of_a_model_that_is_really_narrower(kind: str) -> None:
    anatomy, wide, side = anatomy_of(kind)
    batches, held_back = [images(24, seed=5, side=side)], images(16, seed=6, side=side)
    before = copy.deepcopy(anatomy.model.state_dict())
    readers = readers_of(anatomy, batches)
    logits = anatomy.model(held_back)
    entries = [each for each in score_widths(anatomy, readers, held_back, sizes=3) if each.place in wide]

    assert len(entries) == len(wide)
    for entry in entries:
        for width, error in zip(entry.widths[:-1], entry.errors, strict=False):
            kept = {entry.place.atom: kept_channels(entry.removal.order, width)}
            got = narrowed_start(anatomy, readers, kept)(held_back)
            expected = (got - logits).square().mean() / logits.var(0, unbiased=False).mean()
            assert error == pytest.approx(float(expected), rel=2e-3, abs=1e-9)
            assert error > 1e-8
    assert all(torch.equal(value, before[name]) for name, value in anatomy.model.state_dict().items())


@torch.no_grad()
def test_losses_of_logits_are_what_the_channels_that_went_add_to_them() -> None:
    anatomy = Anatomy.of(apart(), images())
    [place] = [place for place in anatomy.places if place.logits]
    assert not place.readers
    views = images(40, seed=3)
    readers = readers_of(anatomy, [views])
    removal = surgeon_removal(place, losing_at(place, readers))

    # queries and keys of all pairs of positions of all images, in NumPy
    given: dict[str, np.ndarray] = {}
    hooks = [
        anatomy.model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: given.update({name: output.double().numpy()})
        )
        for name in ("attn.q", "attn.k")
    ]
    anatomy.model(views)
    for hook in hooks:
        hook.remove()
    q, k = (given[name].reshape(-1, 2, 8) for name in ("attn.q", "attn.k"))
    k = k - k.mean(0)

    def energy(channels: list[int]) -> float:
        some = np.einsum("xhc,yhc->hxy", q[..., channels], k[..., channels])
        return float((some**2).mean((1, 2)).sum())

    order = removal.order.tolist()
    expected = [energy(order[: number + 1]) - energy(order[:number]) for number in range(8)]
    np.testing.assert_allclose(removal.losses, np.array(expected) / energy(order), rtol=1e-3, atol=1e-6)
    # the first to go is the one whose loss is the least of all
    assert energy(order[:1]) == pytest.approx(min(energy([channel]) for channel in range(8)), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_costs_are_those_counted_on_the_narrowed_model(kind: str) -> None:
    anatomy, wide, side = anatomy_of(kind)
    generator = torch.Generator().manual_seed(0)
    kept = random_channels(wide, generator)
    widths = {atom: len(channels) for atom, channels in kept.items()}
    narrowed = narrow(anatomy.model, anatomy.found, kept).eval()
    for model, at in ((anatomy.model, {}), (narrowed, widths)):
        with flop_counter() as counter:
            model(images(1, side=side))
        assert Macs(anatomy.found)(at) == counter.get_total_flops() // 2
        assert Parameters(anatomy.found, anatomy.model)(at) == parameters(model)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["apart", "its own scale"])
def test_queries_that_read_a_narrower_place_keep_their_scale(kind: str) -> None:
    model = MODELS[kind][0]()
    # channels that are dead in front of queries go for nothing
    for name in ("embed.weight", "embed.bias", "position"):
        model.get_parameter(name)[..., :4].zero_() if name == "position" else model.get_parameter(name)[:4].zero_()
    anatomy = Anatomy.of(model, images())
    names = {place.name: place for place in anatomy.places}
    kept = {names["embed"].atom: torch.arange(4, 12), names["attn.q#2"].atom: torch.arange(5)}
    batches = [images(64, seed=5)]
    expected = without(model, anatomy.found, kept)(images(4, seed=7))

    student = narrowed_start(anatomy, readers_of(anatomy, batches), kept)
    torch.testing.assert_close(student(images(4, seed=7)), expected, rtol=1e-4, atol=1e-4)
    for _ in solve_front_to_back(anatomy, student, kept, batches):
        pass
    # what is solved is what is missing behind the attention: its logits stay those of the channels that are left
    q, k = (student.get_submodule(f"attn.{name}") for name in "qk")
    ratio = (5 / 8) ** 0.5 if kind == "apart" else 1.0
    state = images(5, seed=8).new_tensor(np.random.RandomState(0).randn(9, 8))
    weight, bias = (model.get_parameter(f"attn.q.{name}") for name in ("weight", "bias"))
    rows = torch.tensor([head * 8 + channel for head in range(2) for channel in range(5)])
    wanted = ratio * (state @ weight[rows][:, 4:].T + bias[rows])
    torch.testing.assert_close(q(state), wanted, rtol=1e-3, atol=1e-3)
    assert k.weight.shape == (10, 8)


def pictures(count: int, side: int) -> list[Image.Image]:
    generator = np.random.RandomState(0)
    return [Image.fromarray(generator.randint(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def config(side: int) -> dict[str, object]:
    return {
        "input_size": (3, side, side),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }


@torch.no_grad()
@pytest.mark.parametrize("rounds", [1, 2])
def test_heads_of_half_the_rank_lose_half_of_their_width_for_nothing(rounds: int) -> None:
    teacher = redundant(vit(), 8)
    before = copy.deepcopy(teacher.state_dict())
    views = Views.configured(pictures(64, 8), VIEW_POLICIES["plain"], config(8), seed=0)
    tool = Deriver(teacher, views, config(8), options=DerivingOptions(rounds=rounds))
    wide = [place for place in tool.anatomy.places if place.logits]
    cost = Macs(tool.anatomy.found)
    part = cost({place.atom: 8 for place in wide}) / cost({})

    derived = tool.derive(budget_of({"macs": part + 1e-4}))

    assert derived.choice.to_json()["narrowed"] == {place.name: [16, 8] for place in wide}
    assert derived.error < 1e-8
    probe = images(8, seed=9)
    torch.testing.assert_close(derived.student(probe), teacher(probe), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@torch.no_grad()
def test_protected_attention_keeps_the_teachers_own_weights() -> None:
    teacher = vit()
    views = Views.configured(pictures(64, 8), VIEW_POLICIES["plain"], config(8), seed=0)
    tool = Deriver(teacher, views, config(8), init="slice", protect=["blocks.*.attn"])
    student = tool.derive(budget_of({"macs": 0.9})).student

    attention = {name: value for name, value in teacher.state_dict().items() if ".attn." in name}
    assert len(attention) == 8
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in attention.items())


@torch.no_grad()
def test_without_turned_bases_the_same_heads_lose_much() -> None:
    teacher = redundant(vit(), 8)
    anatomy = Anatomy.of(teacher, images())
    batches, held_back = [images(64, seed=3)], images(32, seed=4)
    errors = []
    for each in (anatomy, turned(anatomy, batches)):
        entries = score_widths(each, readers_of(each, batches), held_back)
        errors.append(
            [entry.errors[0] for entry in entries if entry.place in anatomy.places and entry.widths == (8, 16)]
        )
    assert len(errors[0]) == len(errors[1]) == 2
    assert min(errors[0]) > 1e-4
    assert max(errors[1]) < 1e-9


@torch.no_grad()
@pytest.mark.parametrize("attribute", ["fused", "eager"])
def test_narrower_heads_are_saved_and_opened_with_the_same_bits(tmp_path: Path, attribute: str) -> None:
    torch.manual_seed(0)
    teacher = randomised(timm.create_model("test_vit2", img_size=32, num_classes=CLASSES))
    anatomy = Anatomy.of(teacher, images(2, side=32))
    generator = torch.Generator().manual_seed(1)
    student = narrow(teacher, anatomy.found, random_channels(list(anatomy.places), generator)).eval()
    save_student(tmp_path / "student", student, student, cuts=(), data_config=config(32))
    again = netgraft.load_student(tmp_path / "student")

    for model in (student, again):
        by_kernel(model, attribute == "fused")
    assert torch.equal(again(images(2, side=32)), student(images(2, side=32)))
    for name, module in student.named_modules():
        if name.endswith(".attn"):
            other = again.get_submodule(name)
            keys = ("num_heads", "head_dim", "attn_dim", "scale")
            said = [[vars(each)[key] for key in keys] for each in (module, other)]
            assert said[0] == said[1]
            heads, width, both, scale = said[0]
            assert both == heads * width == module.get_parameter("proj.weight").shape[1]
            assert scale == pytest.approx(width**-0.5, rel=1e-12)


@pytest.mark.parametrize(("heads", "width"), [(2, 8), (1, 16), (1, 4)])
def test_a_twin_says_how_many_heads_it_has_and_how_wide_they_are(heads: int, width: int) -> None:
    anatomy = Anatomy.of(vit(), images())
    student = vit()
    for block in student.get_submodule("blocks").children():
        block.attn = Attention(32, num_heads=heads, attn_head_dim=width, qkv_bias=True)
    found = widths_like(anatomy, student)

    for place in anatomy.places:
        if place.name.endswith("qkv"):
            assert found[place.atom] == heads
        elif place.name.endswith("qkv#2"):
            assert found[place.atom] == width
        else:
            assert found[place.atom] == place.width
