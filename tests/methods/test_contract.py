"""What every method keeps, whichever it is: one table of all of them drives all tests here."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from netgraft.distillation import Distillation, DistillationResult
from netgraft.errors import InterruptedRunError
from netgraft.methods.registry import METHODS, find
from netgraft.modules import state_digest
from netgraft.plan import Phase, StepOutputs
from netgraft.progress import SilentReporter
from netgraft.training.optimizers import make_optimizer
from netgraft.training.parallel import independent_groups
from tests.support.method_pairs import PAIRS, PLAIN, Losses, digit_labels, method, networks, prepare_run, with_observer


@dataclass(frozen=True)
class Facts:
    """What the tests must know of a method.

    ``phases``: how many, of the digits' pair and of the other. ``still``: whether no weight moves. ``smallest``: the
    smallest batch of the digits' pair; a batch norm behind the last maps, which have one pixel, needs two images.
    """

    settings: dict[str, Any] = field(default_factory=lambda: {"steps": 2})
    phases: tuple[int, int] = (1, 1)
    still: bool = False
    smallest: int = 1


CONTRACT = {
    "netgraft": Facts({"block_steps": 2, "join_steps": 2}, phases=(3 + 2, 3 + 2)),
    "kd": Facts(),
    "fitnets": Facts({"hint_steps": 2, "steps": 2}, phases=(2, 2)),
    "at": Facts(),
    "at-gradient": Facts(),
    "nst": Facts(),
    "ft": Facts({"paraphraser_steps": 2, "steps": 2}, phases=(2, 2), smallest=2),
    "ab": Facts({"ab_steps": 2, "steps": 2}, phases=(2, 2), smallest=2),
    "fsp": Facts({"fsp_steps": 2, "steps": 2}, phases=(2, 2)),
    "rkd": Facts(),
    "ban": Facts({"generations": 2, "steps": 4}, phases=(2, 2)),
    "dml": Facts(),
    # the gate's batch norm sees one number a branch and image
    "one": Facts(smallest=2),
    "byot": Facts(),
    "supervised": Facts(),
    # its rate is 0: it takes statistics alone
    "none": Facts(still=True),
    "kd+at": Facts(),
    "kd+fitnets+rkd": Facts({"hint_steps": 2, "steps": 2}, phases=(2, 2)),
}


every_method = pytest.mark.parametrize("name", CONTRACT)


def configured(name: str, batch_size: int = 4, **settings: Any) -> Any:
    return method(name, **{"batch_size": batch_size, **CONTRACT[name].settings, **settings})


def test_the_table_holds_every_method_and_two_combinations() -> None:
    assert set(CONTRACT) == {*METHODS, "kd+at", "kd+fitnets+rkd"}


# --- the plan


@pytest.fixture(scope="module", params=[(pair, name) for pair in PAIRS for name in CONTRACT], ids="-".join)
def planned(request: pytest.FixtureRequest) -> tuple[str, str, Distillation]:
    """A run that never begins."""
    pair, name = request.param
    return pair, name, prepare_run(pair, configured(name))


Planned = tuple[str, str, Distillation]


def test_the_plan_says_everything_and_trains_nothing(planned: Planned) -> None:
    pair, name, prepared = planned
    teacher, plan = prepared.teacher, prepared.plan
    student = state_digest(prepared.model)
    lines = str(plan).splitlines()
    assert len(plan.phases) == CONTRACT[name].phases[PAIRS.index(pair)]
    assert lines[0].endswith(f": {len(plan.phases)} phases, {2 * len(plan.phases)} steps")
    for key, value in CONTRACT[name].settings.items():
        assert f"{key}=({value},)" in lines[0] or f"{key}={value}" in lines[0]
    for number, (line, phase) in enumerate(zip(lines[1 : len(plan.phases) + 1], plan.phases, strict=True), 1):
        count = sum(parameter.numel() for parameter in {*phase.trainable.parameters()})
        assert line.startswith(f"  {number}. {phase.name}: 2 steps of 4, ")
        assert f"{count:,} parameters" in line
    assert state_digest(teacher) == prepared.teacher_digest == state_digest(networks(pair)[0])
    assert state_digest(prepared.model) == student
    assert all(p.grad is None for p in [*teacher.parameters(), *plan.student.parameters()])


def test_each_phase_is_a_line_of_plain_words_that_fits_a_terminal(planned: Planned) -> None:
    _, _, prepared = planned
    phases = prepared.plan.phases
    first, *lines = prepared.plan.lines()
    assert re.fullmatch(r"plan: \d+ steps in all, of 4 views each", first)
    for number, (line, phase) in enumerate(zip(lines, phases, strict=False), 1):
        rate = f"{phase.schedule.lr:g}"
        assert line == f"  {number} of {len(phases)}: {phase.in_words}: 2 steps, rate {rate}"
        # words, with numbers and ranges of them at most: no name of a class, no field with its value, no bracket
        assert re.fullmatch(r"[a-z]+(?:'s)?(?: (?:[a-z]+'?s?|\d+(?:-\d+)?))+", phase.in_words)
        assert phase.in_words != phase.name
        # with as many steps and as small a rate as any preset's
        assert len(line.replace(" 2 steps", " 10,000 steps").replace(f"rate {rate}", "rate 0.00025")) <= 80
    # words tell phases apart
    assert len({phase.in_words for phase in phases}) == len(phases)
    assert all(len(line) <= 80 for line in lines[len(phases) :] if not line.startswith("  note:"))


def connectors(phase: Phase) -> list[nn.Module]:
    return [feature.connector for feature in phase.features if feature.connector is not None]


def test_the_optimiser_has_every_weight_that_is_neither_the_teachers_nor_inherited(planned: Planned) -> None:
    pair, _, prepared = planned
    start = prepared.pairing
    assert start.inherited == (1 if pair == "digits" else 0)
    if pair == "families":
        assert all(wide != narrow for wide, narrow in start.widths)
    frozen = {*start.teacher.parameters()}
    for block in start.student.blocks()[: start.inherited]:
        frozen |= {*block.parameters()}
    for phase in prepared.plan.phases:
        runs = {p for part in [phase.model, *connectors(phase)] for p in part.parameters()}
        given = [p for group in make_optimizer(phase).param_groups for p in group["params"]]
        assert len(given) == len(set(given))
        assert set(given) == runs - frozen
        assert set(given) == {*phase.trainable.parameters()}


def test_phases_that_need_one_another_are_not_run_side_by_side(planned: Planned) -> None:
    phases = planned[2].plan.phases
    for group in independent_groups(phases):
        for number in group:
            phase = phases[number]
            teacher_connectors = [f.connector for f in phase.teacher_features if f.connector is not None]
            sees = [
                phase.model,
                *connectors(phase),
                *teacher_connectors,
                *([] if phase.teacher is None else [phase.teacher]),
            ]
            read = {p for part in sees for p in part.parameters()}
            for other in group:
                assert other == number or read.isdisjoint(phases[other].trainable.parameters())


# --- the run


@dataclass
class Recording(SilentReporter):
    """What could be seen of a run of two steps a phase."""

    name: str
    pair: str
    prepared: Distillation
    weights: dict[int, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict)
    modes: dict[int, list[tuple[nn.Module, bool]]] = field(default_factory=lambda: defaultdict(list))
    batches: dict[int, list[StepOutputs]] = field(default_factory=lambda: defaultdict(list))
    losses: Losses = field(default_factory=Losses)
    states: list[Tensor] = field(default_factory=list)
    running: int = -1

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        self.running = number - 1
        self.losses.phase_started(number, count, name, steps, done)
        self.weights[self.running] = (self._now(), [])

    def progressed(self, done: int, terms: Any) -> None:
        self.losses.progressed(done, terms)

    def phase_finished(self, seconds: float) -> None:
        self.weights[self.running] = (self.weights[self.running][0], self._now())
        self.running = -1
        # in front of any folding
        parts = [part for phase in self.prepared.plan.phases for part in (phase.trainable, *connectors(phase))]
        self.states = [value.clone() for part in parts for value in part.state_dict().values()]

    def _now(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.prepared.plan.phases[self.running].trainable.parameters()]

    def called(self, module: nn.Module, arguments: Any) -> None:
        has_state = bool([*module.parameters(recurse=False), *module.buffers(recurse=False)])
        if self.running >= 0 and (has_state or isinstance(module, nn.Dropout)):
            self.modes[self.running].append((module, module.training))

    def run(self, folder: Path) -> DistillationResult:
        handle = nn.modules.module.register_module_forward_pre_hook(self.called)
        prepared = with_observer(self.prepared, lambda number, batch: self.batches[number].append(batch))
        try:
            return prepared.run(folder=folder, reporter=self)
        finally:
            handle.remove()


@pytest.fixture(scope="module", params=[(pair, name) for pair in PAIRS for name in CONTRACT], ids="-".join)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pair, name = request.param
    recording = Recording(name, pair, prepare_run(pair, configured(name)))
    folder = tmp_path_factory.mktemp("run")
    return recording, recording.run(folder), folder


Recorded = tuple[Recording, DistillationResult, Path]


def test_every_phase_takes_its_steps(recorded: Recorded) -> None:
    recording, distilled, _ = recorded
    assert [len(losses) for losses in recording.losses.phases] == [2] * len(recording.prepared.plan.phases)
    assert distilled.trained.steps == 2 * len(recording.prepared.plan.phases)


def test_every_trained_weight_moves(recorded: Recorded) -> None:
    recording, _, _ = recorded
    for number, phase in enumerate(recording.prepared.plan.phases):
        names = [name for name, _ in phase.trainable.named_parameters()]
        before, after = recording.weights[number]
        moved = {n for n, a, b in zip(names, before, after, strict=True) if not torch.equal(a, b)}
        assert moved == (set() if CONTRACT[recording.name].still else set(names))


def test_everything_trained_is_in_the_checkpoint(recorded: Recorded) -> None:
    recording, _, folder = recorded
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["weights"]
    contents = {(value.shape, value.numpy().tobytes()) for value in saved.values()}
    assert recording.states
    for value in recording.states:
        assert (value.shape, value.numpy().tobytes()) in contents


def test_the_teacher_stays_as_it_is(recorded: Recorded) -> None:
    recording, distilled, _ = recorded
    assert state_digest(recording.prepared.teacher) == distilled.teacher_digest
    assert distilled.teacher_digest == state_digest(networks(recording.pair)[0])


def test_what_trains_is_in_train_mode_at_every_step_and_nothing_else_is(recorded: Recorded) -> None:
    recording, _, _ = recorded
    for number, phase in enumerate(recording.prepared.plan.phases):
        trained, steps_in = {*phase.trainable.modules()}, Counter[nn.Module]()
        for module, training in recording.modes[number]:
            assert training == (module in trained)
            steps_in[module] += 1
        with_weights = {m for m in trained if [*m.parameters(recurse=False)]}
        assert with_weights
        assert all(steps_in[module] >= 2 for module in with_weights)
    assert not any(module.training for module in recording.prepared.teacher.modules())


def test_the_saved_student_is_the_plain_architecture(recorded: Recorded, tmp_path: Path) -> None:
    recording, distilled, _ = recorded
    plain = networks(recording.pair)[1]
    assert distilled.plain
    assert distilled.student is recording.prepared.model
    assert {n: v.shape for n, v in distilled.student.state_dict().items()} == {
        n: v.shape for n, v in plain.state_dict().items()
    }
    distilled.save(tmp_path / "student")
    opened = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    assert state_digest(opened) == state_digest(distilled.student)
    if recording.name == "netgraft":
        return  # has folded its adapters; its own tests compare before and after
    images = torch.randn(3, *distilled.data_config["input_size"])
    with torch.no_grad():
        torch.testing.assert_close(opened(images), distilled.plan.student.eval()(images))


def test_without_labels_no_method_sees_any(recorded: Recorded) -> None:
    recording, _, _ = recorded
    seen = [batch for batches in recording.batches.values() for batch in batches]
    assert len(seen) == 2 * len(recording.prepared.plan.phases)
    assert all(batch.labels is None for batch in seen)


def test_methods_without_a_teacher_take_its_arg_max_for_labels(recorded: Recorded) -> None:
    recording, _, _ = recorded
    about = find(recording.name).about
    batch = recording.batches[len(recording.batches) - 1][-1]
    phase = recording.prepared.plan.phases[-1]
    if about.teacher or about.labels == "none":
        return
    target = batch.target
    assert target is not None
    batch = replace(batch, output=batch.output.detach(), features=tuple(f.detach() for f in batch.features))
    plain, classes = phase.objective(batch), target.argmax(1)
    for labels, same in ((classes, True), ((classes + 1) % target.shape[1], False)):
        given = phase.objective(replace(batch, labels=labels))
        assert given.keys() == plain.keys()
        assert all(torch.equal(value, given[name]) for name, value in plain.items()) is same
    # the teacher's confidence teaches nothing
    surer = phase.objective(replace(batch, target=3 * target))
    assert all(torch.equal(value, surer[name]) for name, value in plain.items())


@every_method
def test_with_labels_every_method_gets_those_of_its_images(name: str) -> None:
    seen: list[StepOutputs] = []
    labels = digit_labels(8)
    prepared = prepare_run("digits", configured(name, 5), count=8, labels=labels, views=PLAIN)
    last = prepared.plan.phases[-1]
    teacher = last.teacher
    with_observer(prepared, lambda number, batch: seen.append(batch)).run()
    assert len(seen) == 2 * len(prepared.plan.phases)
    assert all(batch.labels is not None for batch in seen)
    if teacher is None:
        return
    # there is one view an image, so the teacher's logits tell which image a row shows
    with torch.no_grad():
        logits = teacher.eval()(prepared.views.batch(range(8)))
    assert len(set(labels)) > 5
    for batch in seen[-2:]:
        assert batch.target is not None
        assert batch.labels is not None
        shown = torch.cdist(batch.target, logits).argmin(1)
        assert batch.labels.tolist() == [labels[image] for image in shown.tolist()]


# --- stop and go on


def trained_bytes(prepared: Distillation, distilled: DistillationResult) -> list[str]:
    return [state_digest(distilled.student), *(state_digest(phase.trainable) for phase in prepared.plan.phases)]


@every_method
def test_stopped_in_the_middle_of_each_phase_and_resumed_is_the_same_run(name: str, tmp_path: Path) -> None:
    whole = prepare_run("digits", configured(name))
    expected = trained_bytes(whole, whole.run())
    for number in range(1, CONTRACT[name].phases[0] + 1):
        # asked in front of every step; the rest of the phase before comes first
        asked = iter([False, True] if number == 1 else [False, False, True])
        with pytest.raises(InterruptedRunError, match=f"before step 2 of phase {number};"):
            prepare_run("digits", configured(name)).run(folder=tmp_path, resume=True, stop=partial(next, asked))
    last = prepare_run("digits", configured(name))
    assert trained_bytes(last, last.run(folder=tmp_path, resume=True)) == expected


# --- finite


@pytest.mark.parametrize("precision", ["32", "bf16"])
@every_method
def test_losses_of_one_image_are_finite_in_the_smallest_batches(name: str, precision: str) -> None:
    smallest = CONTRACT[name].smallest
    # larger batches in float32 are those of all other tests
    for batch_size in {smallest, 4} if precision == "bf16" else {smallest}:
        losses = Losses()
        prepared = prepare_run("digits", configured(name, batch_size), count=1, precision=precision)
        distilled = prepared.run(reporter=losses)
        terms = [value for phase in losses.phases for step in phase for value in step.values()]
        assert len(terms) >= 2 * len(prepared.plan.phases)
        assert torch.tensor(terms).isfinite().all()
        assert all(value.isfinite().all() for value in distilled.student.state_dict().values())


# --- without a step


def test_without_steps_nothing_is_trained() -> None:
    for name in ("none", "kd", "dml", "one", "ban"):
        prepared = prepare_run("digits", method(name, steps=0))
        start = state_digest(prepared.model)
        assert prepared.plan.phases == ()
        assert state_digest(prepared.run().student) == start
