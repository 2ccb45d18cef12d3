"""NetGraft with a part changed or left out: the plans, and that a plain student comes out of each of them."""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from netgraft.cli.main import run as command
from torch import Tensor, nn

from netgraft.distillation import Distillation
from netgraft.errors import RequestError
from netgraft.grafting.adapters import Adapter
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing, inherit, merge_to
from netgraft.grafting.preparation import cut_and_pair
from netgraft.grafting.scions import make_scions
from netgraft.methods.method import Budget
from netgraft.methods.registry import NetGraft, choose
from netgraft.plan import StepOutputs
from netgraft.progress import SilentReporter
from netgraft.training.parallel import independent_groups
from tests.support.method_pairs import divergence, networks, pairing, prepare_run, random, values
from tests.support.random_models import build

SHORT = {"block_steps": (2,), "join_steps": 2, "batch_size": 4}


# names of the phases for the digits' pair, of whose four blocks the first is inherited
VARIANTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "as published": ({}, ["graft block 2", "graft block 3", "graft block 4", "join blocks 2-3", "join blocks 2-4"]),
    "stage 1": ({"join_steps": 0}, ["graft block 2", "graft block 3", "graft block 4"]),
    "stage 2": ({"block_steps": (0,)}, ["join blocks 2-3", "join blocks 2-4"]),
    "jointly from the start": ({"block_steps": (0,), "joins": "at-once"}, ["join blocks 2-4"]),
    "one join": ({"joins": "at-once"}, ["graft block 2", "graft block 3", "graft block 4", "join blocks 2-4"]),
    "back to front": (
        {"joins": "back-to-front"},
        ["graft block 2", "graft block 3", "graft block 4", "join blocks 3-4", "join blocks 2-4"],
    ),
    "frozen adapters": (
        {"adapters": "frozen"},
        ["graft block 2", "graft block 3", "graft block 4", "join blocks 2-3", "join blocks 2-4"],
    ),
    "soft targets": (
        {"objective": "kl"},
        ["graft block 2", "graft block 3", "graft block 4", "join blocks 2-3", "join blocks 2-4"],
    ),
}


every_variant = pytest.mark.parametrize("name", VARIANTS)


@lru_cache
def paired(inherit: str = "auto") -> Pairing:
    """The digits' pair; plans train nothing, so that one does for all of them."""
    return pairing(inherit)


@lru_cache
def paired_in_two() -> Pairing:
    """Of two blocks, the first of which is the same in both models and inherited."""
    return inherit(merge_to(pairing("none"), 2, costs=[3, 1, 1, 1]))


def variant(name: str) -> NetGraft:
    return NetGraft(**{**SHORT, **VARIANTS[name][0]})


def parameters(*modules: nn.Module) -> set[nn.Parameter]:
    return {parameter for module in modules for parameter in module.parameters()}


# --- the plans


@every_variant
def test_a_variant_has_its_phases_and_prints_them(name: str) -> None:
    changed, expected = VARIANTS[name]
    plan = variant(name).plan(paired())
    assert [phase.name for phase in plan.phases] == expected
    first, *lines = str(plan).splitlines()
    assert f"{len(expected)} phases, {2 * len(expected)} steps" in first
    assert all(f"{key}={value!r}" in first for key, value in changed.items())
    assert [line.split(":")[0] for line in lines] == [f"  {n}. {phase}" for n, phase in enumerate(expected, 1)]


@pytest.mark.parametrize("inherit", ["auto", "none"])
@every_variant
def test_what_a_phase_names_is_the_students_and_all_else_the_teachers(name: str, inherit: str) -> None:
    start = paired(inherit)
    teacher, student = start.teacher.blocks(), start.student.blocks()
    for phase in variant(name).plan(start).phases:
        numbers = [int(number) - 1 for number in phase.name.split()[-1].split("-")]
        here = slice(numbers[0], numbers[-1] + 1)
        blocks = list(phase.model)
        assert blocks[: here.start] == teacher[: here.start]
        assert blocks[here.start + 1 :] == teacher[here.stop :]
        assert [layer for layer in blocks[here.start].children() if layer in student] == student[here]
        own = parameters(*student[here])
        assert own <= parameters(phase.trainable) <= parameters(blocks[here.start])


@every_variant
def test_blocks_alone_may_be_trained_side_by_side_and_each_join_waits(name: str) -> None:
    expected = VARIANTS[name][1]
    alone = sum("graft" in phase for phase in expected)
    groups = [range(0, alone)] if alone else []
    groups += [range(number, number + 1) for number in range(alone, len(expected))]
    assert list(independent_groups(variant(name).plan(paired()).phases)) == groups


def test_joins_from_the_back_grow_to_the_front() -> None:
    names = [phase.name for phase in NetGraft(block_steps=(0,), joins="back-to-front").plan(paired("none")).phases]
    assert names == ["join blocks 3-4", "join blocks 2-4", "join blocks 1-4"]


@pytest.mark.parametrize("joins", ["front-to-back", "back-to-front", "at-once"])
@pytest.mark.parametrize(
    ("block_steps", "expected"),
    [((5,), [("graft block 2", 5)]), ((0,), [("join block 2", 7)]), ((0, 5), [("join block 2", 7)])],
)
def test_a_block_that_is_the_only_one_to_train_is_trained_once(
    joins: str, block_steps: tuple[int, ...], expected: list[tuple[str, int]]
) -> None:
    start = paired_in_two()
    assert (len(start), start.inherited) == (2, 1)
    plan = NetGraft(block_steps=block_steps, join_steps=7, joins=joins).plan(start)
    assert [(phase.name, phase.schedule.steps) for phase in plan.phases] == expected


# --- what is trained, and what comes out


class Unfolded(SilentReporter):
    """Keeps the student as it is at the end of each phase, adapters and all."""

    def __init__(self, prepared: Distillation, images: Tensor) -> None:
        self.prepared, self.images = prepared, images
        self.state = self.now()
        self.logits = torch.empty(0)

    def now(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.prepared.plan.student.state_dict().items()}

    @torch.no_grad()
    def phase_finished(self, seconds: float) -> None:
        self.state = self.now()
        self.logits = self.prepared.plan.student(self.images)


@pytest.mark.parametrize(
    ("name", "pair_name"), [*((name, "digits") for name in VARIANTS), ("frozen adapters", "families")]
)
def test_a_plain_student_comes_out_whose_every_weight_was_trained(name: str, pair_name: str) -> None:
    prepared = prepare_run(pair_name, variant(name))
    images = torch.randn(3, *prepared.data_config["input_size"])
    watch = Unfolded(prepared, images)
    before = watch.now()
    layers, inherited = list(prepared.plan.student), prepared.pairing.inherited
    frozen = [n for n, layer in enumerate(layers) if n < inherited or (isinstance(layer, Adapter) and "frozen" in name)]
    assert any(isinstance(layer, Adapter) for layer in layers)
    learned = {key for key, _ in prepared.plan.student.named_parameters() if int(key.split(".")[0]) not in frozen}
    shapes = {key: value.shape for key, value in prepared.model.state_dict().items()}
    distilled = prepared.run(reporter=watch)
    moved = {key for key, value in watch.state.items() if not torch.equal(value, before[key])}
    assert {key for key, _ in prepared.plan.student.named_parameters()} & moved == learned
    assert not any(int(key.split(".")[0]) in frozen for key in moved), "a buffer"
    # folded away, which changes nothing
    assert distilled.plain
    assert distilled.student is prepared.model
    assert {key: value.shape for key, value in distilled.student.state_dict().items()} == shapes
    with torch.no_grad():
        torch.testing.assert_close(distilled.student(images), watch.logits, atol=1e-4, rtol=1e-4)


# --- frozen adapters


def test_frozen_adapters_stand_only_where_widths_differ() -> None:
    start = paired("none")
    assert start.widths == [(32, 32), (64, 32), (128, 64)]
    shapes = [[tuple(a.weight.shape[:2]) for a in scion.adapters()] for scion in make_scions(start, trained=False)]
    assert shapes == [[], [(64, 32)], [(32, 64), (128, 64)], [(64, 128)]]


def test_of_frozen_adapters_nothing_is_trained_nor_printed() -> None:
    start = paired()
    plan = variant("frozen adapters").plan(start)
    for phase, line in zip(plan.phases, str(plan).splitlines()[1:], strict=True):
        numbers = [int(number) - 1 for number in phase.name.split()[-1].split("-")]
        own = parameters(*start.student.blocks()[numbers[0] : numbers[-1] + 1])
        assert parameters(phase.trainable) == own
        assert phase.adapters == ()
        assert line.endswith(f"adam lr 0.001 cosine; {sum(p.numel() for p in own):,} parameters")


def test_frozen_adapters_of_a_sliced_student_leave_no_trace() -> None:
    """They choose the teacher's channels and put them back: where two meet they cancel out, bit by bit."""
    prepared = prepare_run("digits", variant("frozen adapters"), init="slice")
    images = torch.randn(3, 1, 8, 8)
    plain = prepared.pairing.student
    assert len(list(prepared.plan.student)) > len(plain)
    with torch.no_grad():
        assert torch.equal(prepared.plan.student.eval()(images), plain.eval()(images))
    watch = Unfolded(prepared, images)
    distilled = prepared.run(reporter=watch)
    trained = {value.numpy().tobytes() for value in watch.state.values()}
    for name, value in distilled.student.state_dict().items():
        assert value.numpy().tobytes() in trained, name


# --- soft targets


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_compared_at_a_temperature(temperature: float) -> None:
    method = NetGraft(objective="kl", temperature=temperature)
    student, teacher = 3 * random(5, 10), 3 * random(5, 10, seed=1)
    for phase in method.plan(paired()).phases:
        terms = values(phase.objective(StepOutputs(student, teacher, None)))
        assert terms == {"logits": pytest.approx(divergence(teacher.numpy(), student.numpy(), temperature))}


@pytest.mark.parametrize("objective", ["mse", "normalized", "kl"])
def test_every_objective_is_least_for_the_teachers_own_logits(objective: str) -> None:
    [compare, *_] = NetGraft(objective=objective).plan(paired()).phases
    teacher = random(5, 10)
    [same] = values(compare.objective(StepOutputs(teacher.clone(), teacher, None))).values()
    [other] = values(compare.objective(StepOutputs(teacher + random(5, 10, seed=1), teacher, None))).values()
    assert abs(same) < 1e-12
    assert other > 1e-2


# --- wrong requests


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"joins": "sideways"}, "joins must be one of front-to-back, back-to-front, at-once, not"),
        ({"adapters": "none"}, "adapters must be one of trained, frozen, not"),
        ({"objective": "l1"}, "objective must be one of normalized, mse, kl, not"),
        ({"temperature": 0}, "temperature must be a finite number above 0, not"),
        ({"temperature": "inf"}, "temperature must be a finite number, not inf"),
    ],
)
def test_wrong_hyper_parameters_are_refused(settings: dict[str, Any], said: str) -> None:
    typed: dict[str, Any] = {n: float(value) if n == "temperature" else value for n, value in settings.items()}
    with pytest.raises(RequestError, match=said):
        choose("netgraft", "default", Budget(100, 10), {name: str(value) for name, value in settings.items()})
    with pytest.raises(RequestError, match=said):
        NetGraft(**typed)


# --- fewer blocks


def digits(**options: Any) -> Pairing:
    return cut_and_pair(*networks("digits"), PairingOptions(**{"init": "random", **options}), input_size=(1, 8, 8))


def multiplications(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Of each stage in the order of the forward: its layers' outputs times the inputs that go into one of them."""
    found: dict[str, int] = {}

    def count(name: str, layer: nn.Conv2d | nn.Linear, output: Tensor) -> None:
        stage = name.partition(".")[0]
        found[stage] = found.get(stage, 0) + output[0].numel() * layer.weight[0].numel()

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
    model(images)
    return found


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_blocks_are_merged_where_the_teachers_cost_is_most_even(blocks: int) -> None:
    teacher, student = build("cifar_resnet20"), build("cifar_resnet8")
    costs = [*multiplications(build("cifar_resnet20"), torch.zeros(1, 3, 32, 32)).values()]
    ends = ("act1", "layer1", "layer2", "layer3")
    assert len(costs) == len(ends) + 1
    unevenness = {
        kept: sum(sum(costs[a:b]) ** 2 for a, b in pairwise([0, *kept, 5]))
        for kept in combinations(range(1, 5), blocks - 1)
    }
    best = min(unevenness, key=lambda kept: unevenness[kept])
    assert list(unevenness.values()).count(unevenness[best]) == 1
    merged = cut_and_pair(teacher, student, PairingOptions("random", blocks=blocks), input_size=(3, 32, 32))
    assert merged.teacher.names == (*(ends[cut - 1] for cut in best), "head")


def test_fewer_blocks_are_the_same_networks() -> None:
    images = torch.randn(3, 1, 8, 8)
    models = networks("digits")
    start = cut_and_pair(*models, PairingOptions("random", "none", 3), input_size=(1, 8, 8))
    assert len(start) == len(start.student) == 3
    with torch.no_grad():
        for model, chain in zip(models, (start.teacher, start.student), strict=True):
            assert torch.equal(chain.eval()(images), model.eval()(images))
    assert [cut.size for cut in start.teacher.cuts] == [cut.size for cut in start.student.cuts]


def test_blocks_are_merged_before_any_is_inherited_or_sliced() -> None:
    whole, two = digits(), digits(blocks=2)
    # the front stage, which alone is alike in both models, is no block of its own any more
    assert (whole.inherited, two.inherited) == (1, 0)
    assert two.student.names[0] != whole.student.names[0]
    sliced = digits(blocks=2, init="slice")
    assert [len(chosen) for chosen in sliced.selections] == [narrow for _, narrow in sliced.widths]
    with pytest.raises(ValueError, match="merged before"):
        merge_to(whole, 2, costs=[1, 1, 1, 1])
    with pytest.raises(ValueError, match="merged before"):
        merge_to(digits(inherit="none", init="slice"), 2, costs=[1, 1, 1, 1])


@pytest.mark.parametrize("blocks", [-1, 0, 1, 5])
def test_a_number_of_blocks_that_there_are_not_is_refused(blocks: int) -> None:
    said = f"the models pair in 4 blocks, which can be merged to between 2 and 4, not to {blocks}"
    with pytest.raises(RequestError, match=said):
        digits(blocks=blocks)


@pytest.mark.parametrize("blocks", [2, 3])
def test_a_plain_student_comes_out_of_fewer_blocks(blocks: int) -> None:
    prepared = prepare_run("digits", variant("as published"), blocks=blocks)
    assert len(prepared.pairing) == blocks
    images = torch.randn(3, 1, 8, 8)
    watch = Unfolded(prepared, images)
    distilled = prepared.run(reporter=watch)
    assert distilled.plain
    with torch.no_grad():
        torch.testing.assert_close(distilled.student(images), watch.logits, atol=1e-4, rtol=1e-4)


def test_the_number_of_blocks_decides_the_fingerprint() -> None:
    prints = [prepare_run("digits", variant("stage 2"), blocks=blocks).fingerprint for blocks in (None, 3)]
    assert prints[0] != prints[1]
    # to as many as there are is not to merge
    assert prepare_run("digits", variant("stage 2"), blocks=4).fingerprint == prints[0]


def test_a_command_asks_for_variants_and_its_result_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--shots", "1", "--views", "plain", "--device", "cpu", "--precision", "32", "--out", "run"]
    request = ["distill", *short, "--block-steps", "0", "--join-steps", "2", "--joins", "at-once", "--objective", "kl"]
    request += ["--adapters", "frozen", "--temperature", "2"]
    assert command([*request, "--blocks", "3", "--quiet"]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["blocks"] == json.loads(Path("run/config.json").read_text())["blocks"] == 3
    assert (result["steps"], result["opens_with_timm"]) == (2, True)
    chosen = {"joins": "at-once", "objective": "kl", "adapters": "frozen", "temperature": "2"}
    assert chosen.items() <= result["settings"].items()
    capsys.readouterr()
    assert command([*request, "--resume"]) == 2
    assert "blocks 3 there, 4 now" in capsys.readouterr().err
    assert command([*request, "--blocks", "9"]) == 2
    assert "not to 9; choose another number of blocks" in capsys.readouterr().err
