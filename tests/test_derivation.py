"""A student derived from a teacher, a few images and a budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import netgraft
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.derivation import Derivation, Deriver, derive
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.budget import budget_of
from netgraft.deriving.library import Library
from netgraft.deriving.low_rank import join_dear_ones
from netgraft.deriving.narrowing import narrow
from netgraft.deriving.options import DerivingOptions
from netgraft.errors import RequestError
from netgraft.evaluation.metrics import macs
from netgraft.modules import parameters
from netgraft.progress import SilentReporter
from tests.support.derivable import network
from tests.support.random_models import build, snapshot

IMAGES = 12


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return list(netgraft.open_data("digits").train.load_many(range(IMAGES)))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return netgraft.load_teacher("digits_vgg7_bn")


@pytest.fixture(scope="module")
def few_views(pictures: list[Image.Image], teacher: nn.Module) -> Views:
    data_config = resolve_model_data_config(teacher)
    return Views.configured(pictures, VIEW_POLICIES["plain"], data_config, seed=0)


def deriver(teacher: nn.Module, views: Views, **options: object) -> Deriver:
    return Deriver(teacher, views, resolve_model_data_config(teacher), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(teacher: nn.Module, few_views: Views) -> tuple[Deriver, Derivation]:
    tool = deriver(teacher, few_views)
    return tool, tool.derive(budget_of({"macs": 0.5}))


class Notes(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def probe(count: int = 5) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_student_is_as_small_as_the_choice_says(made: tuple[Deriver, Derivation], teacher: nn.Module) -> None:
    _, derived = made
    models = (teacher, derived.student)
    assert derived.choice.costs["macs"] == tuple(macs(model, (1, 8, 8)) for model in models)
    assert derived.choice.costs["parameters"] == tuple(parameters(model) for model in models)
    before, after = derived.choice.costs["macs"]
    assert 0.45 < after / before <= 0.5
    narrowed = derived.choice.to_json()["narrowed"]
    assert {name: len(channels) for name, channels in derived.kept_names().items()} == {
        name: kept for name, (_, kept) in narrowed.items()
    }


@torch.no_grad()
def test_the_student_is_saved_and_opens_with_the_same_bits(made: tuple[Deriver, Derivation], tmp_path: Path) -> None:
    _, derived = made
    derived.save(tmp_path / "student")

    assert torch.equal(netgraft.load_student(tmp_path / "student")(probe()), derived.student(probe()))


def test_a_library_that_was_read_serves_for_another_budget(made: tuple[Deriver, Derivation], few_views: Views) -> None:
    tool, derived = made
    assert derived.library is not None
    again = deriver(netgraft.load_teacher("digits_vgg7_bn"), few_views)
    again.library = Library.from_json(derived.library.to_json(), again.anatomy.places)

    first, second = (each.derive(budget_of({"macs": 0.3, "parameters": 0.3})) for each in (tool, again))
    assert str(first.choice) == str(second.choice)
    assert all(student / whole <= 0.3 for whole, student in second.choice.costs.values())
    assert all(
        torch.equal(*pair)
        for pair in zip(first.student.state_dict().values(), second.student.state_dict().values(), strict=True)
    )


def test_what_is_protected_stays_whole(teacher: nn.Module, few_views: Views, made: tuple[Deriver, Derivation]) -> None:
    # protected are what a layer writes and what it reads
    tool = deriver(teacher, few_views, protect=["features.14", "features.0"])
    assert made[1].library is not None
    tool.library = Library.from_json(made[1].library.to_json(), tool.anatomy.places)
    derived = tool.derive(budget_of({"macs": 0.8}))

    assert {"features.0", "features.10", "features.14"} <= set(derived.choice.to_json()["whole"])
    stars = deriver(teacher, few_views, protect=["*.14", "feature?.0"])
    stars.library = Library.from_json(made[1].library.to_json(), stars.anatomy.places)
    assert str(stars.derive(budget_of({"macs": 0.8})).choice) == str(derived.choice)
    for nowhere in ("nowhere", "feat", "*.nowhere"):
        with pytest.raises(RequestError, match=rf"^there is nothing to protect at '{re.escape(nowhere)}'; the first"):
            deriver(teacher, few_views, protect=[nowhere])


@pytest.mark.parametrize("allocation", ["knapsack", "uniform"])
def test_a_width_that_is_given_is_kept_and_the_others_meet_the_budget(
    teacher: nn.Module, few_views: Views, made: tuple[Deriver, Derivation], allocation: str
) -> None:
    free = made[1].choice.to_json()["narrowed"]
    tool = deriver(teacher, few_views, force={"features.3": 31}, options=DerivingOptions(allocation=allocation))
    if tool.scores:
        assert made[1].library is not None
        tool.library = Library.from_json(made[1].library.to_json(), tool.anatomy.places)
    derived = tool.derive(budget_of({"macs": 0.5}))

    assert derived.choice.to_json()["narrowed"]["features.3"][1] == 31 != free.get("features.3", [64, 64])[1]
    [*_, last] = derived.student.get_submodule("features.3").modules()
    assert len(last.get_parameter("weight")) == 31
    teachers, students = derived.choice.costs["macs"]
    assert 0.4 < students / teachers <= 0.5
    assert students == macs(derived.student, (1, 8, 8))


@pytest.mark.parametrize(
    ("force", "said"),
    [
        ({"nowhere": 8}, r"^there is no place 'nowhere' whose width could be given; the first are features"),
        ({"features.3": 0}, r"^features\.3 can be 1 to \d+ wide, not 0$"),
        ({"features.3": 10**6}, r"^features\.3 can be 1 to \d+ wide, not 1000000$"),
    ],
)
def test_a_width_that_can_not_be_had_is_refused(
    teacher: nn.Module, few_views: Views, force: dict[str, int], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        deriver(teacher, few_views, force=force)


@torch.no_grad()
def test_a_named_twin_gets_the_same_start(
    made: tuple[Deriver, Derivation], teacher: nn.Module, few_views: Views
) -> None:
    tool = deriver(teacher, few_views, options=DerivingOptions(convolutions="whole"))
    twin = build("digits_vgg7_bn_half", num_classes=10, in_chans=1)
    shapes = [value.shape for value in twin.state_dict().values()]
    derived = tool.like(twin)

    assert derived.student is twin
    assert [value.shape for value in twin.state_dict().values()] == shapes
    assert derived.library is None
    with pytest.raises(RequestError, match="init='solve' needs a student that is built like the teacher"):
        tool.like(build("cifar_resnet8", num_classes=10))
    with pytest.raises(ValueError, match="a named student has its teacher's bases and layers"):
        made[0].like(twin)


def test_the_teacher_is_left_as_it_was(pictures: list[Image.Image]) -> None:
    teacher = netgraft.load_teacher("digits_vgg7_bn").train().requires_grad_(False)
    before = snapshot(teacher)
    derived = derive(teacher, pictures[:2], {"macs": 0.9}, views=VIEW_POLICIES["plain"])

    assert snapshot(teacher) == before
    assert not any(module.training for module in derived.student.modules())
    assert all(parameter.requires_grad for parameter in derived.student.parameters())
    pointers = [{value.data_ptr() for value in model.state_dict().values()} for model in (teacher, derived.student)]
    assert not pointers[0] & pointers[1]


@torch.no_grad()
def assert_sound(derived: Derivation) -> None:
    assert all(value.isfinite().all() for value in derived.student.state_dict().values())
    assert derived.student(probe()).isfinite().all()
    assert derived.library is not None
    # in parts of the logits' squares, where there is no variance
    assert max(error for entry in derived.library.entries for error in entry.errors) < 100


@torch.no_grad()
def test_one_image_is_enough_for_a_student_of_numbers(pictures: list[Image.Image], teacher: nn.Module) -> None:
    derived = derive(teacher, pictures[:1], {"parameters": 0.5}, views=VIEW_POLICIES["plain"])

    assert_sound(derived)


@torch.no_grad()
def test_blank_images_are_enough_for_a_student_of_numbers(teacher: nn.Module) -> None:
    blank = [Image.new("L", (8, 8), 0)] * 3
    derived = derive(teacher, blank, {"macs": 0.5}, views=VIEW_POLICIES["plain"])

    assert_sound(derived)


def test_what_cannot_be_is_refused_in_a_sentence(pictures: list[Image.Image], made: tuple[Deriver, Derivation]) -> None:
    tool, _ = made
    teacher = netgraft.load_teacher("digits_vgg7_bn")
    with pytest.raises(RequestError, match=r"^there are no images to derive a student from; give at least one$"):
        derive(teacher, [])
    for keep, sentence in {
        "1.5": "a fraction of the teacher's macs lies between 0 and 1",
        "0.00001": "a budget of .* macs can't be met; the least that can is",
        "100G": "the teacher has .* macs, which is within the budget",
    }.items():
        with pytest.raises(RequestError, match=sentence):
            tool.derive(budget_of({"macs": keep}))
    next(iter(teacher.parameters())).data[0] = torch.nan
    with pytest.raises(RequestError, match="its weights hold values that are no numbers"):
        derive(teacher, pictures)
    with pytest.raises(RequestError, match="has nothing that could become narrower"):
        derive(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), pictures, data_config=resolve_model_data_config(teacher))


def test_it_prints_what_was_chosen(made: tuple[Deriver, Derivation]) -> None:
    text = str(made[1].choice)

    assert text.splitlines()[0].split() == ["place", "width", "kept", "error", "alone"]
    assert "macs: " in text
    assert str(made[1].library).splitlines()[0].startswith("place")


@torch.no_grad()
def test_how_far_a_start_is_decides_the_rates(
    made: tuple[Deriver, Derivation], teacher: nn.Module, few_views: Views, pictures: list[Image.Image]
) -> None:
    tool, close = made
    held_back = few_views.batch(range(len(few_views)))  # fewer than are held back
    logits = teacher(held_back).double().numpy()
    variance = np.square(logits - logits.mean(0)).mean()
    narrow = tool.derive(budget_of({"macs": 0.03}))
    for derived in (close, narrow):
        differences = derived.student.eval()(held_back).double().numpy() - logits
        assert derived.error == pytest.approx(np.square(differences).mean() / variance, rel=1e-4)
    assert 0 < close.error < narrow.error < 0.2

    for derived, rate in ((close, 1e-4), (replace(close, error=0.3), 1e-3)):
        with torch.enable_grad():
            prepared = netgraft.prepare(teacher, derived.student, pictures, views=few_views, derivation=derived)
        assert prepared.pairing.start_error == derived.error
        assert {phase.schedule.lr for phase in prepared.plan.phases} == {rate}


def test_a_shallower_twin_of_a_teacher_whose_other_blocks_do_nothing_is_the_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = build("cifar_resnet20"), build("cifar_resnet8", 1)
    missing = [f"layer{stage}.{number}" for stage in (1, 2, 3) for number in (1, 2)]
    without_effect(teacher, missing)
    pictures = [Image.effect_noise((32, 32), 80).convert("RGB") for _ in range(8)]
    data_config = {**resolve_model_data_config(teacher), "input_size": (3, 32, 32)}
    views = Views.configured(pictures, VIEW_POLICIES["plain"], data_config, seed=0)
    anatomy = Anatomy.on_noise(teacher, (3, 32, 32))
    derived = Deriver(teacher, views, data_config, anatomy=anatomy).like(student)

    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(student(images), teacher(images), rtol=1e-4, atol=1e-5)
    assert derived.choice.to_json()["left_out"] == missing
    paired = netgraft.prepare(teacher, student, pictures, derivation=derived, data_config=data_config).pairing
    assert paired.left_out == tuple(derived.choice.to_json()["left_out"])
    assert paired.starts_close


def without_effect(model: nn.Module, names: Sequence[str]) -> None:
    """Let residual blocks add nothing."""
    with torch.no_grad():
        for name in names:
            norm = model.get_submodule(f"{name}.bn2")
            for value in (norm.weight, norm.bias, norm.running_mean):
                assert isinstance(value, Tensor)
                value.zero_()


def test_a_block_that_does_nothing_is_left_out_and_the_student_opens_again(tmp_path: Path) -> None:
    teacher = build("cifar_resnet20")
    without_effect(teacher, ["layer2.1"])
    pictures = [Image.effect_noise((32, 32), 80).convert("RGB") for _ in range(8)]
    data_config = {**resolve_model_data_config(teacher), "input_size": (3, 32, 32)}
    derived = derive(teacher, pictures, keep={"macs": 0.85}, views=VIEW_POLICIES["plain"], data_config=data_config)
    assert derived.choice.to_json()["left_out"] == ["layer2.1"]
    derived.save(tmp_path / "student")
    images = torch.randn(4, 3, 32, 32)
    again = netgraft.load_student(tmp_path / "student")
    assert torch.equal(again(images), derived.student(images))
    assert macs(again, (3, 32, 32)) <= 0.85 * macs(teacher, (3, 32, 32))


def test_without_a_student_distill_derives_one_and_trains_it(
    teacher: nn.Module, pictures: list[Image.Image], tmp_path: Path
) -> None:
    before = snapshot(teacher)
    runner = netgraft.Runner(accelerator="cpu", precision="32", seed=3)
    steps = netgraft.NetGraft(block_steps=(0,), joins="at-once", join_steps=6)
    result = netgraft.distill(
        teacher,
        images=pictures,
        keep={"macs": 0.5},
        protect=["features.3"],
        force={"features.7": 40},
        views=VIEW_POLICIES["plain"],
        runner=runner,
        method=steps,
        folder=tmp_path / "run",
    )
    assert macs(result.student, (1, 8, 8)) <= 0.5 * macs(teacher, (1, 8, 8))
    assert snapshot(teacher) == before
    assert (result.trained.steps, result.pairing.init) == (6, "solve")
    assert result.derivation is not None
    assert result.derivation.library is not None
    widths = {row.place: row.kept for row in result.derivation.choice.places}
    assert (widths["features.3"], widths["features.7"]) == (32, 40)
    # where it started from is what derive gives for the same views
    asked = {"protect": ["features.3"], "force": {"features.7": 40}, "views": VIEW_POLICIES["plain"], "seed": 3}
    start = netgraft.derive(teacher, pictures, {"macs": 0.5}, **asked)  # type: ignore[arg-type]
    assert [p.shape for p in start.student.parameters()] == [p.shape for p in result.student.parameters()]
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(start.student.parameters(), result.student.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.02
    result.save(tmp_path / "student")
    opened = netgraft.load_student(tmp_path / "student")
    assert torch.equal(opened(probe()), result.student(probe()))


def test_distill_takes_a_student_or_a_budget(teacher: nn.Module, pictures: list[Image.Image]) -> None:
    with pytest.raises(RequestError, match="give a student, or keep to have one derived, not both"):
        netgraft.distill(teacher, build("digits_vgg7_bn_half"), pictures, keep={"macs": 0.5})
    with pytest.raises(RequestError, match="there are no images to derive a student from"):
        netgraft.distill(teacher)


def noise(count: int, side: int = 8) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def on_noise(teacher: nn.Module, **options: object) -> Deriver:
    data_config = {**resolve_model_data_config(teacher), "input_size": (3, 8, 8)}
    views = Views.configured(noise(40), VIEW_POLICIES["plain"], data_config, seed=0)
    return Deriver(teacher, views, data_config, options=DerivingOptions(**options))  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["residual", "inverted", "transformer"])
def test_a_student_derived_in_rounds_is_what_its_choice_says(kind: str, tmp_path: Path) -> None:
    teacher = network(kind)
    once, twice = (on_noise(teacher, rounds=rounds).derive(budget_of({"macs": 0.4})) for rounds in (1, 3))
    assert once.kept_names() != twice.kept_names(), "what a channel is worth was measured anew"
    for derived in (once, twice):
        before, after = derived.choice.costs["macs"]
        assert (before, after) == (macs(teacher, (3, 8, 8)), macs(derived.student, (3, 8, 8)))
        assert after <= 0.4 * before
        # with the teacher's own weights of the channels that it says it kept, it has the shapes that it has
        sliced = narrow(derived.anatomy.model, derived.anatomy.found, derived.kept, derived.anatomy.blocks)
        join_dear_ones(sliced)
        assert {name: value.shape for name, value in sliced.state_dict().items()} == {
            name: value.shape for name, value in derived.student.state_dict().items()
        }


@torch.no_grad()
def test_rounds_come_where_one_ends_far_off_and_the_better_start_stays() -> None:
    teacher = build("cifar_resnet20", num_classes=7)
    starts = {}
    for rounds in (1, 11, None):
        told = on_noise(teacher, rounds=rounds, convolutions="whole")
        told.reporter = notes = Notes()
        starts[rounds] = told.derive(budget_of({"macs": 0.1})).error
        assert any(note.startswith("round 2 of ") for note in notes.said) == (rounds != 1)
    assert starts[1] > 0.1
    assert starts[None] == min(starts[1], starts[11])


def test_rounds_that_find_nothing_left_to_take_are_made_one() -> None:
    # its only place has two channels
    teacher = network("shuffle")
    tools = (on_noise(teacher, rounds=rounds, convolutions="whole") for rounds in (1, 3))
    once, thrice = (tool.derive(budget_of({"macs": 0.8})) for tool in tools)
    assert once.kept_names() == thrice.kept_names() != {}
