"""What a step computes: the outputs and features that a phase names, and no block behind them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from netgraft.errors import RunError
from netgraft.plan import Feature, Phase, Plan, StepOutputs, TrainingSchedule
from netgraft.training.cache_storage import MemoryStorage
from netgraft.training.frozen_cache import FrozenCache, ReadingOrder
from netgraft.training.runner import Runner
from netgraft.training.step import StepInputs, StepModule, explained, frozen_reads, total
from tests.support.tiny_plan import Notebook, make_views

FIT = TrainingSchedule(1, 8, 1e-2)

VIEWS = make_views()

CPU = torch.device("cpu")


@dataclass
class Seen:
    """An objective that keeps what it is shown."""

    batches: list[StepOutputs] = field(default_factory=list)

    def __call__(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        self.batches.append(batch)
        return {"sum": batch.output.sum(), "features": sum((f.sum() for f in batch.features), torch.zeros(()))}


def model(seed: int = 0) -> nn.Sequential:
    """Five blocks of which every second works in place."""
    torch.manual_seed(seed)
    blocks = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Hardtanh(-0.3, 0.3, inplace=True),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Hardtanh(-0.2, 0.2, inplace=True),
        nn.Sequential(nn.Threshold(0.05, 0.0, inplace=True), nn.Flatten(), nn.Linear(256, 5)),
    ]
    return nn.Sequential(*blocks).eval().requires_grad_(False)


def at(*numbers: int) -> tuple[Feature, ...]:
    return tuple(map(Feature, numbers))


@torch.no_grad()
def outputs(blocks: nn.Sequential, indices: Tensor) -> list[Tensor]:
    """What each block answers, one after the other, never in place."""
    state, found = VIEWS.batch(indices), []
    for block in blocks:
        state = block(state.clone())
        found.append(state.clone())
    return found


def step(phase: Phase, indices: Tensor, *, limit: int) -> dict[str, Tensor]:
    everything = torch.arange(len(VIEWS))
    cache = FrozenCache(
        VIEWS, ReadingOrder.of([everything] * 2, len(VIEWS)), CPU, [MemoryStorage(CPU, limit)], nullcontext
    )
    cache.keep(list(frozen_reads([phase])), Notebook())
    network = StepModule(phase, {}, nullcontext)
    return network(network.frozen.inputs(cache.read(network.frozen.all(), indices), None))


SOME = torch.tensor([5, 40, 5, 0])

ORDERS = [(0, 1, 2, 3, 4), (4, 2, 0), (1, 0), (3, 1, 2), (1,), (0,), (2,), (1, 1, 3), (4, 4), ()]


@pytest.mark.parametrize("limit", [0, 2**30])
@pytest.mark.parametrize("features", ORDERS)
@pytest.mark.parametrize("border", range(3))
def test_features_are_the_blocks_answers_in_the_order_asked_for(
    border: int, features: tuple[int, ...], limit: int
) -> None:
    student, teacher, seen = model(), model(1), Seen()
    trainable = student[2 * border] if border < 2 else nn.ModuleList([student[2], student[4]])
    phase = Phase(
        "any", student, trainable, seen, FIT, teacher, features=at(*features), teacher_features=at(*features[::-1])
    )
    step(phase, SOME, limit=limit)
    [batch] = seen.batches
    expected, answers = outputs(student, SOME), outputs(teacher, SOME)
    assert batch.target is not None
    pairs = [(batch.output, expected[-1]), (batch.target, answers[-1])]
    pairs += list(zip(batch.features, [expected[number] for number in features], strict=True))
    pairs += list(zip(batch.teacher_features, [answers[number] for number in features[::-1]], strict=True))
    for got, wanted in pairs:
        # the same convolution in another memory order
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_what_model_and_teacher_share_is_not_changed_by_a_block_that_works_in_place(limit: int) -> None:
    teacher, seen = model(), Seen()
    scion = nn.Sequential(nn.Threshold(0.1, 0.0, inplace=True), nn.Conv2d(4, 4, 1))
    student = nn.Sequential(teacher[0], scion)
    phase = Phase("graft", student, scion, seen, FIT, nn.Sequential(teacher[0]), features=at(0), teacher_features=at(0))
    step(phase, SOME, limit=limit)
    [batch] = seen.batches
    expected = outputs(teacher, SOME)[0]
    assert (expected < 0.1).any()
    for got in (batch.target, *batch.features, *batch.teacher_features):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_without_a_teacher_there_is_no_target() -> None:
    student, seen = model(), Seen()
    step(Phase("alone", student, student[2], seen, FIT, features=at(0, 3)), SOME, limit=2**30)
    [batch] = seen.batches
    assert (batch.target, batch.labels, batch.teacher_features) == (None, None, ())
    assert [tuple(feature.shape[1:]) for feature in batch.features] == [(4, 8, 8)] * 2


def test_connectors_see_the_features_and_change_nothing_else() -> None:
    student, teacher, seen = model(), model(1), Seen()
    narrow = nn.Conv2d(4, 2, 1)
    zeroing = nn.Threshold(10.0, 0.0, inplace=True)
    trainable = nn.ModuleList([student[2], narrow])
    phase = Phase(
        "connected",
        student,
        trainable,
        seen,
        FIT,
        teacher,
        features=(Feature(3, narrow), Feature(0, zeroing), Feature(3, zeroing), *at(3, 0)),
        teacher_features=(Feature(2, zeroing), *at(2)),
    )
    step(phase, SOME, limit=2**30)
    [batch] = seen.batches
    expected, answers = outputs(student, SOME), outputs(teacher, SOME)
    with torch.no_grad():
        projected = narrow(expected[3])
    zeros = torch.zeros_like(expected[3])
    pairs = list(zip(batch.features, (projected, zeros, zeros, expected[3], expected[0]), strict=True))
    pairs += [*zip(batch.teacher_features, (zeros, answers[2]), strict=True), (batch.output, expected[4])]
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("border", [0, 2])
def test_outputs_are_differentiated_by_what_the_trained_blocks_take_in(border: int) -> None:
    student = model()
    gradients: list[Tensor] = []

    def objective(batch: StepOutputs) -> Mapping[str, Tensor]:
        assert batch.inputs is not None
        [gradient] = torch.autograd.grad(batch.output.square().sum(), batch.inputs, create_graph=True)
        gradients.append(gradient)
        return {"gradient": gradient.square().sum()}

    student[border].requires_grad_(True)
    phase = Phase("by input", student, student[border], objective, FIT, differentiates_input=True)
    terms = step(phase, SOME, limit=2**30)
    [expected] = outputs(student[:border], SOME)[-1:] or [VIEWS.batch(SOME)]
    state = expected.requires_grad_()
    rest = student[border:]
    [direct] = torch.autograd.grad(rest(state.clone()).square().sum(), state)
    torch.testing.assert_close(gradients[0], direct, atol=1e-5, rtol=1e-4)
    total(terms).backward()
    assert student[border].weight.grad is not None


class Called(nn.Module):
    """Runs another module and tells when it ran and when a gradient came back through it; its copies do, too."""

    def __init__(self, inner: nn.Module, tell: Callable[[str], None]) -> None:
        super().__init__()
        # a function stays the same in a copy
        self.inner, self.tell = inner, tell

    def forward(self, x: Tensor) -> Tensor:
        assert len(x)  # fx can't follow it: the copy is a plain one
        self.tell("forward")
        y: Tensor = self.inner(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: self.tell("backward"))
        return y


def watched(name: str, events: Counter[str], seed: int = 0) -> nn.Sequential:
    """A model whose blocks count under ``name number forward`` and ``backward``."""
    blocks = [
        Called(block, lambda what, number=number: events.update([f"{name}{number} {what}"]))  # type: ignore[misc]
        for number, block in enumerate(model(seed))
    ]
    return nn.Sequential(*blocks).eval().requires_grad_(False)


def test_the_model_and_the_teacher_of_a_phase_end_where_they_end() -> None:
    events: Counter[str] = Counter()
    student, teacher, seen = watched("s", events), watched("t", events, 1), Seen()
    phase = Phase(
        "early",
        student[:3],
        student[2],
        seen,
        TrainingSchedule(3, 8, 1e-3),
        teacher[:2],
        features=at(0),
        teacher_features=at(1, 0),
    )
    Runner(accelerator="cpu", precision="32").run(Plan("early", (phase,), student), VIEWS)
    assert len(seen.batches) == 3
    assert {event.split()[0] for event in events} == {"s0", "s1", "s2", "t0", "t1"}
    assert events["s2 backward"] == 3
    assert not any(events[f"{name} backward"] for name in ("s0", "s1", "t0", "t1"))


def test_gradients_pass_through_the_frozen_blocks_behind_and_stop_at_those_in_front() -> None:
    events: Counter[str] = Counter()
    student, teacher = watched("s", events), model(1)

    def objective(batch: StepOutputs) -> Mapping[str, Tensor]:
        assert batch.target is not None
        for number, block in enumerate(student):
            assert all(p.requires_grad == (number == 2) for p in block.parameters())
        return {"squared": (batch.output - batch.target).square().mean()}

    phase = Phase("middle", student, student[2], objective, TrainingSchedule(4, 8, 1e-2), teacher)
    before = [parameter.clone() for parameter in student.parameters()]
    Runner(accelerator="cpu", precision="32").run(Plan("middle", (phase,), student), VIEWS)
    backward = {event: count for event, count in events.items() if event.endswith("backward")}
    assert backward == {"s2 backward": 4, "s3 backward": 4, "s4 backward": 4}
    moved = [not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True)]
    assert moved == [False, False, True, True, False, False]
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_teachers_connector_stays_frozen() -> None:
    student, teacher, connector = model(), model(1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    before = copy.deepcopy(connector.state_dict())
    modes: list[bool] = []

    def objective(batch: StepOutputs) -> Mapping[str, Tensor]:
        [feature], [wanted] = batch.features, batch.teacher_features
        modes.append(connector[1].training)
        return {"feature": (feature - wanted).square().mean()}

    teacher_features = (Feature(2, connector),)
    phase = Phase("x", student, student[2], objective, FIT, teacher, features=at(2), teacher_features=teacher_features)
    Runner(accelerator="cpu", precision="32").run(Plan("x", (phase,), student), VIEWS)
    assert all(torch.equal(before[name], value) for name, value in connector.state_dict().items())
    assert modes == [False]
    assert connector[1].training  # as it was found
    assert all(p.requires_grad and p.grad is None for p in connector.parameters())


@pytest.mark.parametrize("copied", [False, True])
def test_no_gradient_is_formed_for_a_frozen_weight(copied: bool) -> None:
    student, seen = model(), Seen()
    student[2].requires_grad_(True)
    faster = {student[4]: copy.deepcopy(student[4])} if copied else {}
    network = StepModule(Phase("middle", student, student[2], seen, FIT, features=at(3)), faster, nullcontext)
    assert (network.blocks[2] is student[4]) != copied
    state = outputs(student, SOME)[1]
    total(network(StepInputs(state, {}, None, (), None))).backward()
    assert {id(p) for p in network.parameters() if p.grad is not None} == {id(p) for p in student[2].parameters()}
    assert all(p.grad is None and not p.requires_grad for p in student[4].parameters())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_loss_on_features_alone_trains(number: int) -> None:
    student, teacher = model(), model(1)
    losses: list[float] = []

    def objective(batch: StepOutputs) -> Mapping[str, Tensor]:
        [feature], [wanted] = batch.features, batch.teacher_features
        loss = (feature - wanted).square().mean()
        losses.append(float(loss.detach()))
        return {"feature": loss}

    trainable = nn.ModuleList([student[0], student[2]])
    schedule = TrainingSchedule(40, 24, 1e-2)
    phase = Phase(
        "hint", student, trainable, objective, schedule, teacher, features=at(number), teacher_features=at(number)
    )
    Runner(accelerator="cpu", precision="32").run(Plan("hint", (phase,), student), VIEWS)
    assert losses[-1] < 0.7 * losses[0]


# --- what is read


def test_what_an_earlier_phase_trains_is_read_by_no_one_before() -> None:
    student, teacher, seen = model(), model(1), Seen()
    phases = [
        Phase("second", student, student[2], seen, FIT, teacher),
        Phase("last", student, student[4], seen, FIT, teacher, features=at(0, 3), teacher_features=at(1)),
    ]
    blocks, others = tuple(student), tuple(teacher)
    first = [blocks[:2], others]
    assert list(frozen_reads(phases)) == [*first, blocks[:1], others, others[:2]]
    assert list(frozen_reads(phases[1:])) == [blocks[:4], blocks[:1], blocks[:4], others, others[:2]]


def test_terms_are_summed_in_float32() -> None:
    terms = {"large": torch.tensor(256.0, dtype=torch.bfloat16), "small": torch.tensor(0.5, dtype=torch.bfloat16)}
    assert total(terms).dtype == torch.float32
    assert float(total(terms)) == 256.5  # bfloat16 has no such number


def test_a_batch_norm_without_statistics_is_explained() -> None:
    norm = nn.BatchNorm2d(3)
    phase = Phase("the norm", nn.Sequential(norm), norm, Seen(), TrainingSchedule(1, 7, 1e-2, whole_epochs=True))
    said = "at least 2 views, got one of 1; raise batch_size from 7, or change the number"
    with pytest.raises(RunError, match=said), explained(phase):
        norm.train()(torch.zeros(1, 3, 1, 1))


def test_a_layer_without_a_second_derivative_is_explained() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Hardsigmoid())

    def twice() -> None:
        inputs = torch.zeros(1, 1, 2, 2, requires_grad=True)
        [gradient] = torch.autograd.grad(layer(inputs).sum(), inputs, create_graph=True)
        gradient.sum().backward()

    phase = Phase("by input", layer, layer, Seen(), FIT, differentiates_input=True)
    said = "'by input' differentiates twice, and a layer of the student can't be"
    with pytest.raises(RunError, match=said), explained(phase):
        twice()
    with pytest.raises(RuntimeError, match="derivative for"), explained(Phase("plain", layer, layer, Seen(), FIT)):
        twice()
