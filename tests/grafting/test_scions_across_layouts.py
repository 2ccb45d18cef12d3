"""Grafts between networks of different layouts: made, trained, joined, saved, and compared by every method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import prepare
from netgraft.grafting.adapters import Adapter, ConvertingAdapter, LinearAdapter
from netgraft.grafting.folding import fold_with_report
from netgraft.grafting.layout_conversion import LayoutConversion, form_of
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing, pair
from netgraft.grafting.preparation import cut_and_pair
from netgraft.grafting.scions import assemble, graft, join, make_scions
from netgraft.methods.method import Budget
from netgraft.methods.netgraft import NetGraft
from netgraft.methods.registry import METHODS, choose, find
from netgraft.models.students import load_student, save_student
from netgraft.modules import state_digest
from netgraft.plan import Phase
from netgraft.splitting.split import split
from netgraft.training.runner import Runner
from netgraft.training.step import StepModule, total
from tests.support.method_pairs import Losses
from tests.support.random_models import images

CLASSES = 10


def make(name: str, seed: int, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(name, num_classes=CLASSES, **options).eval()


def swin() -> nn.Module:
    return make(
        "swin_tiny_patch4_window7_224",
        0,
        embed_dim=16,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        img_size=64,
    )


@dataclass(frozen=True)
class Pair:
    """Two networks, the size of their images, and what there is to be seen of them from outside."""

    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    size: int
    layouts: Sequence[tuple[str, str]]
    plain: bool
    """Whether every adapter folds: the student's blocks begin with convolutions, as ResNet's and MobileNet's do."""

    @property
    def config(self) -> dict[str, Any]:
        return {
            "input_size": (3, self.size, self.size),
            "mean": (0.5,) * 3,
            "std": (0.3,) * 3,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }


def convnext() -> nn.Module:
    return make("test_convnext", 0)


def deep_vit() -> nn.Module:
    return make("test_vit", 0, depth=12, embed_dim=96, num_heads=3, img_size=32)


def vit(size: int) -> nn.Module:
    """Six layers, 64 wide."""
    return make("test_vit", 1, img_size=size)


PAIRS = {
    "ConvNeXt to ResNet": Pair(convnext, lambda: make("test_resnet", 1), 32, [("NCHW", "NCHW")] * 4, True),
    "Swin to MobileNet": Pair(swin, lambda: make("mobilenetv3_small_050", 1), 64, [("NHWC", "NCHW")] * 4, True),
    "ViT-12 to ViT-6": Pair(deep_vit, lambda: vit(32), 32, [("tokens", "tokens")] * 3, False),
    "ResNet to ViT": Pair(lambda: make("test_resnet", 0), lambda: vit(64), 64, [("NCHW", "tokens")] * 3, False),
    "MambaOut to itself, narrower": Pair(
        lambda: make("test_mambaout", 0, dims=(24, 48, 64, 96)),
        lambda: make("test_mambaout", 1),
        64,
        [("NHWC", "NHWC")] * 4,
        False,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_student_of_another_kind_trains_runs_alone_and_opens_again(name: str, tmp_path: Path) -> None:
    case = PAIRS[name]
    teacher, student = case.teacher(), case.student()
    before = state_digest(teacher)
    prepared = prepare(
        teacher,
        student,
        open_data("digits").train.load_many(range(16)),
        method=NetGraft(block_steps=(6,), join_steps=8, batch_size=8),
        views=ViewPolicy("few", pool=32),
        runner=Runner(accelerator="cpu", precision="32"),
        data_config=case.config,
    )
    cuts = zip(prepared.pairing.teacher.cuts, prepared.pairing.student.cuts, strict=True)
    assert [(teacher.layout, student.layout) for teacher, student in cuts] == list(case.layouts)
    differ = [teacher != student for teacher, student in case.layouts]
    assert [bool(conversion) for conversion in prepared.pairing.conversions] == differ
    # the adapters have a rate of their own, converting ones too
    for phase in prepared.plan.phases:
        scion = {id(p) for p in phase.trainable.parameters()}
        blocks = {id(p) for p in student.parameters()}
        assert {id(p) for adapter in phase.adapters for p in adapter.parameters()} == scion - blocks

    x = prepared.views.batch(range(32))
    expected = logits_of(teacher, x)
    apart = (logits_of(prepared.plan.student.eval(), x) - expected).square().mean()
    losses = Losses()
    distilled = prepared.run(reporter=losses)
    assert (logits_of(distilled.student, x) - expected).square().mean() < apart
    facts = json.loads(json.dumps(distilled.facts()))
    assert [bool(text) for text in facts["conversions"]] == differ
    last = [terms["logits"] for terms in losses.phases[-1]]
    assert sum(last[-2:]) < 0.8 * sum(last[:2])
    assert state_digest(teacher) == before

    assert distilled.plain == case.plain
    assert not any(isinstance(layer, ConvertingAdapter | LayoutConversion) for layer in distilled.student.modules())
    distilled.save(tmp_path / "student")
    loaded: Any = load_student(tmp_path / "student")
    assert torch.equal(logits_of(loaded, x), logits_of(distilled.student, x))
    assert loaded.num_classes == CLASSES


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


@cache
def pairing(name: str) -> Pairing:
    case = PAIRS[name]
    return cut_and_pair(
        case.teacher(), case.student(), PairingOptions("random", "none"), input_size=(3, case.size, case.size)
    )


def mixed(adapter: nn.Module, x: Tensor) -> Tensor:
    """A matrix at each place: what an adapter's weight is."""
    assert isinstance(adapter.weight, Tensor)
    return torch.einsum("oi,bihw->bohw" if x.dim() == 4 else "oi,bni->bno", adapter.weight.flatten(1), x)


@pytest.mark.parametrize("name", ["Swin to MobileNet", "ResNet to ViT"])
def test_a_graft_between_layouts_is_the_composition_by_hand(name: str) -> None:
    made = pairing(name)
    scions = make_scions(made)
    t, s = made.teacher.blocks(), made.student.blocks()
    forms = [[form_of(cut) for cut in chain.cuts] for chain in (made.teacher, made.student)]
    x = images(2, 3, 64, 64)
    enter, exit_ = scions[1].adapters()
    arriving = LayoutConversion(forms[0][0], forms[1][0])(t[0](x.clone()))
    leaving = LayoutConversion(forms[1][1], forms[0][1])(mixed(exit_, s[1](mixed(enter, arriving))))
    expected = leaving
    for block in t[2:]:
        expected = block(expected)
    grafted = graft(made.teacher, scions[1], range(1, 2))
    torch.testing.assert_close(grafted(x), expected, rtol=1e-4, atol=1e-5)


def test_between_joined_blocks_the_student_keeps_resolution_and_class_token() -> None:
    made = pairing("ResNet to ViT")
    scions = make_scions(made)
    t, s = made.teacher.blocks(), made.student.blocks()
    x = images(2, 3, 64, 64)
    adapters = [scion.adapters() for scion in scions]
    tokens = s[0](x)
    for number in range(1, 3):
        # the two matrices one after another, and nothing else
        tokens = s[number](mixed(adapters[number][0], mixed(adapters[number - 1][-1], tokens)))
    joined = join(scions[:3])
    assert sum(isinstance(layer, ConvertingAdapter) for layer in joined) == 1
    assert joined.adapters()[-1] is adapters[2][-1]
    leaving = LayoutConversion(form_of(made.student.cuts[2]), form_of(made.teacher.cuts[2]))(
        mixed(adapters[2][-1], tokens)
    )
    grafted = graft(made.teacher, joined, range(3))
    torch.testing.assert_close(grafted(x), t[3](leaving), rtol=1e-4, atol=1e-5)

    whole = assemble(made, scions)
    assert not any(isinstance(layer, ConvertingAdapter) for layer in whole)
    expected = s[3](mixed(adapters[3][0], mixed(adapters[2][-1], tokens)))
    torch.testing.assert_close(whole(x), expected, rtol=1e-4, atol=1e-5)
    # joined blocks train the very matrices that they had alone
    alone = {id(p) for scion in scions for p in scion.parameters()}
    assert {id(p) for p in join(scions).parameters()} == alone


def test_tokens_that_only_one_network_has_are_made_and_dropped() -> None:
    teacher = make("test_vit", 0, img_size=32)
    student = make("test_vit", 1, img_size=32, depth=4, embed_dim=32, num_heads=2, reg_tokens=3)
    x = images(2, 3, 32, 32)
    made = pair(split(teacher, probe=x), split(student, probe=x))
    assert [cut.prefix_tokens for cut in (*made.teacher.cuts, *made.student.cuts)] == [1, 1, 1, 4, 4, 4]
    assert made.conversions == ["tokens 2x2+1 / tokens 2x2+4"] * 3
    scions = make_scions(made)
    enter = scions[1].adapters()[0]
    given = made.teacher[0](x)
    got = enter(given)
    wanted = torch.cat([given[:, :1], given[:, 1:].mean(1, keepdim=True).expand(-1, 3, -1), given[:, 1:]], dim=1)
    torch.testing.assert_close(got, mixed(enter, wanted))
    assert graft(made.teacher, scions[1], range(1, 2))(x).shape == (2, CLASSES)
    assert assemble(made, scions)(x).shape == (2, CLASSES)


def test_frozen_adapters_stay_as_they_start_when_they_convert_too() -> None:
    plan = NetGraft(adapters="frozen").plan(pairing("Swin to MobileNet"))
    student = pairing("Swin to MobileNet").student
    for phase in plan.phases:
        assert phase.adapters == ()
        assert {id(p) for p in phase.trainable.parameters()} <= {id(p) for p in student.parameters()}
    assert any(isinstance(layer, ConvertingAdapter) for layer in plan.phases[0].model.modules())


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("layout", ["tokens", "NHWC"])
def test_adapters_that_stayed_are_saved_as_layers(layout: str, fold: bool, tmp_path: Path) -> None:
    name = {"tokens": "ViT-12 to ViT-6", "NHWC": "MambaOut to itself, narrower"}[layout]
    case, made = PAIRS[name], pairing(name)
    student = assemble(made, make_scions(made)).eval()
    built = fold_with_report(student).student.eval() if fold else student
    assert sum(isinstance(layer, LinearAdapter) for layer in built) == (len(made) - 1) * (1 if fold else 2)
    model = case.student()
    save_student(tmp_path / "s", built, model, cuts=made.student.names[:-1], data_config=case.config)
    x = images(2, 3, case.size, case.size)
    loaded = load_student(tmp_path / "s")
    assert torch.equal(logits_of(loaded, x), logits_of(built, x))
    assert [type(layer) for layer in loaded.children() if isinstance(layer, nn.Linear)] == [
        type(layer) for layer in built if isinstance(layer, nn.Linear)
    ]


def test_a_student_for_other_images_than_its_own_opens_again(tmp_path: Path) -> None:
    case = PAIRS["ViT-12 to ViT-6"]
    model = case.student()
    save_student(tmp_path / "s", model, model, cuts=(), data_config=case.config)
    x = images(2, 3, 32, 32)
    for opened in (load_student(tmp_path / "s"), timm.create_model(f"local-dir:{tmp_path / 's'}", pretrained=True)):
        assert torch.equal(logits_of(opened.eval(), x), logits_of(model, x))


def one_step(phase: Phase, x: Tensor, *, seen: list[Any] | None = None) -> dict[str, Tensor]:
    """Compute a phase's loss and its gradients on frozen outputs that are computed here."""
    phase.trainable.requires_grad_(True)
    phase.trainable.train()
    network = StepModule(phase, {}, nullcontext)

    @torch.no_grad()
    def through(blocks: Sequence[nn.Module]) -> Tensor:
        state = x.clone()
        for block in blocks:
            state = block(state.clone())
        return state

    outputs = {blocks: through(blocks) for blocks in network.frozen.all()}
    if seen is not None:
        seen.extend(outputs.values())
    terms = network(network.frozen.inputs(outputs, None))
    total(terms).backward()
    return terms


def settings(method: str) -> dict[str, str]:
    known = {f.name for f in fields(find(method))}
    return {"hint_weight": "1"} if "hint_weight" in known else {}


@pytest.mark.parametrize("name", ["ConvNeXt to ResNet", "ViT-12 to ViT-6", "ResNet to ViT"])
@pytest.mark.parametrize("method", [*(name for name in METHODS if name != "none"), "kd+at+fitnets+ab"])
def test_every_method_has_a_loss_and_gradients_whatever_the_layouts(method: str, name: str) -> None:
    made = pairing(name)
    chosen = choose(method, "default", Budget(4, CLASSES), settings(method)).method
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plan = chosen.plan(made)
        x = images(4, 3, PAIRS[name].size, PAIRS[name].size)
        for module in (made.teacher, made.student):
            module.eval()
            module.requires_grad_(False)
        for phase in plan.phases[-3:]:
            for twice in range(2):
                terms = one_step(phase, x)
                assert terms
                assert all(math.isfinite(float(value.detach())) for value in terms.values()), (phase.name, twice)
            gradients = [p.grad for p in phase.trainable.parameters() if p.grad is not None]
            assert any(bool((gradient != 0).any()) for gradient in gradients)
            assert all(bool(gradient.isfinite().all()) for gradient in gradients)
            phase.trainable.eval()
            phase.trainable.requires_grad_(False)
            phase.trainable.zero_grad()


def test_features_are_compared_as_maps_of_the_smaller_size() -> None:
    made = pairing("ResNet to ViT")
    chosen = choose("at", "default", Budget(4, CLASSES)).method
    phase = chosen.plan(made).phases[-1]
    x = images(2, 3, 64, 64)
    for feature, chain in [
        *((feature, made.student) for feature in phase.features),
        *((feature, made.teacher) for feature in phase.teacher_features),
    ]:
        state = x
        for block in chain.blocks()[: feature.block + 1]:
            state = block(state.clone())
        got = feature.connector(state) if feature.connector is not None else state
        side = min(made.teacher.cuts[feature.block].size[0], 4)
        if chain is made.student:
            state = state[:, 1:].reshape(2, 4, 4, -1).permute(0, 3, 1, 2)
        # areas of a power of two: an average of averages
        scale = state.shape[-1] // side
        wanted = state.reshape(2, -1, side, scale, side, scale).mean((3, 5))
        torch.testing.assert_close(got, wanted)


def test_nothing_stands_in_front_of_maps_that_can_be_compared_as_they_are() -> None:
    made = pairing("ConvNeXt to ResNet")
    phase = choose("at", "default", Budget(4, CLASSES)).method.plan(made).phases[-1]
    assert [f.connector for f in (*phase.features, *phase.teacher_features)] == [None] * 6
    assert not any(isinstance(a, ConvertingAdapter) for s in make_scions(made) for a in s.adapters())
    assert all(isinstance(a, Adapter) for s in make_scions(made) for a in s.adapters())
