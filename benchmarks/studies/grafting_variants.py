"""Ideas that could make grafting better, each measured against the plain method.

    python -m benchmarks.studies.grafting_variants              # finished runs are not computed again
    python -m benchmarks.studies.grafting_variants digits       # one data set
    python -m benchmarks.studies.grafting_variants table        # as Markdown

What counts is how far the student's logits are from the teacher's on training images that the run doesn't see: nothing
is chosen by the test set, and no label is used. How often they agree is noted too, but near 100 % it tells little.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Subset

from benchmarks.studies.cifar_task import TEACHER, WEIGHTS
from netgraft.data.loader import EvalDataset
from netgraft.data.sources import data_root, open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.distillation import Distillation, prepare
from netgraft.evaluation.metrics import agreement, predict
from netgraft.grafting.adapters import Adapter
from netgraft.grafting.pairing import Pairing
from netgraft.methods.registry import NetGraft
from netgraft.models.creation import build_student
from netgraft.models.loading import load_teacher
from netgraft.modules import eval_mode
from netgraft.plan import Feature, Phase, Plan, StepOutputs
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.reports.formats import markdown
from netgraft.reports.summaries import Statistic
from netgraft.reports.tables import Column, Line, Table
from netgraft.training.runner import Runner

RESULTS = Path(__file__).parents[1] / "results" / "ideas"

SEEDS = (0, 1, 2)

SHOTS = 10

HELD_OUT = 5000

SETTINGS: dict[str, Any] = {"block_steps": (150,), "join_steps": 500}

EXAMPLES = 1024
"""Views from which adapters are solved."""

RIDGE = 1e-3
"""Of the mean square of what an adapter takes in."""


@dataclass(frozen=True)
class Task:
    """A teacher, a student and its start."""

    data: str
    teacher: str
    student: str
    init: str
    precision: str
    weights: str | None = None


TASKS = (
    Task("digits", "digits_vgg7_bn", "digits_vgg7_bn_half", "slice", "32"),
    Task("digits", "digits_vgg7_bn", "digits_vgg7_bn_half", "random", "32"),
    Task("digits", "digits_vgg7_bn", "test_resnet.r160_in1k", "random", "32"),
    Task("cifar10-jpeg", TEACHER, "cifar_vgg16_bn_half", "slice", "bf16", WEIGHTS),
    Task("cifar10-jpeg", TEACHER, "cifar_vgg16_bn_half", "random", "bf16", WEIGHTS),
)


@dataclass(frozen=True)
class MatchingFeatures(NetGraft):
    """Also match the map behind the trained blocks, in all phases but those that end with the head."""

    def plan(self, pairing: Pairing) -> Plan:
        """The same phases, with one more term."""
        plan = super().plan(pairing)
        return replace(plan, phases=tuple(_matching(phase, len(pairing)) for phase in plan.phases))


def _matching(phase: Phase, length: int) -> Phase:
    [at] = [number for number, block in enumerate(phase.model) if block is phase.trainable]
    # one scion stands for as many of the teacher's blocks as the model is short of
    last = at + length - len(phase.model)
    if last == length - 1:
        return phase

    def both(batch: StepOutputs) -> Mapping[str, Tensor]:
        student, teacher = batch.features[0].float(), batch.teacher_features[0].float()
        distance = (student - teacher).square().mean() / teacher.square().mean()
        return {**phase.objective(batch), "features": distance}

    return replace(phase, objective=both, features=(Feature(at),), teacher_features=(Feature(last),))


@dataclass(frozen=True)
class WithoutGrafts(NetGraft):
    """No stage 1: its steps go to the joins."""

    def plan(self, pairing: Pairing) -> Plan:
        """Joins alone, in as many steps as both stages have."""
        count = len(pairing) - pairing.inherited
        steps = count * self.block_steps[0] + (count - 1) * self.join_steps
        joins = 1 if self.joins == "at-once" else count - 1
        return NetGraft(**{**vars(self), "block_steps": (0,), "join_steps": round(steps / joins)}).plan(pairing)


@torch.no_grad()
def solve_adapters(prepared: Distillation) -> None:
    """Let each scion start from adapters in closed form.

    What enters keeps the most of the teacher's features (principal directions, not centred); what leaves the untrained
    block is mapped to the teacher's features by least squares.
    """
    pairing = prepared.pairing
    # what comes into the first block, and what leaves each
    states = [prepared.views.batch(range(min(EXAMPLES, len(prepared.views))))]
    with eval_mode(pairing.teacher):
        for block in pairing.teacher.blocks():
            states.append(block(states[-1].clone()))
    grafts = [phase.trainable for phase in prepared.plan.phases if phase.name.startswith("graft")]
    for number, scion in enumerate(grafts, pairing.inherited):
        layers = list(scion.children())
        state = states[number]
        enter, leave = layers[0], layers[-1]
        if isinstance(enter, Adapter):
            directions = torch.linalg.eigh(_moments(state, state)).eigenvectors
            enter.weight.copy_(directions[:, -enter.out_channels :].T[:, :, None, None])
            state = enter(state)
        if isinstance(leave, Adapter):
            # its statistics are those of the batch, and stay what they were
            state = copy.deepcopy(layers[-2]).train()(state.clone())
            moments = _moments(state, state)
            moments += RIDGE * moments.diagonal().mean() * torch.eye(len(moments))
            leave.weight.copy_(torch.linalg.solve(moments, _moments(state, states[number + 1])).T[:, :, None, None])


def _moments(first: Tensor, second: Tensor) -> Tensor:
    """Mean over images and positions of the products of channels, (C, C')."""
    count = first.numel() / first.shape[1]
    return torch.einsum("bihw,bjhw->ij", first.float(), second.float()) / count


class Averaging(SilentReporter):
    """Ends each phase with the mean of its last quarter's weights and statistics."""

    def __init__(self, prepared: Distillation) -> None:
        self._phases = prepared.plan.phases
        self._phase = self._phases[0]
        self._average: AveragedModel | None = None

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Begin with nothing."""
        self._phase, self._average = self._phases[number - 1], None

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        """Take in what the weights are now."""
        if 4 * done > 3 * self._phase.schedule.steps:
            self._average = self._average or AveragedModel(self._phase.trainable, use_buffers=True)
            self._average.update_parameters(self._phase.trainable)

    def phase_finished(self, seconds: float) -> None:
        """Put the mean in the place of the last."""
        if self._average is not None:
            self._phase.trainable.load_state_dict(self._average.module.state_dict())


class Recalibration(SilentReporter):
    """Ends each phase with batch-norm statistics of the images as they are, instead of those of their views."""

    def __init__(self, prepared: Distillation, images: Tensor) -> None:
        self._phases = prepared.plan.phases
        self._phase = self._phases[0]
        self._images = images

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        """Note which it is."""
        self._phase = self._phases[number - 1]

    @torch.no_grad()
    def phase_finished(self, seconds: float) -> None:
        """Take the statistics anew."""
        norms = [each for each in self._phase.trainable.modules() if isinstance(each, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches, of which there is one
            norm.train()
        self._phase.model(self._images.clone())
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _plain(prepared: Distillation, views: Views) -> ProgressReporter:
    return SilentReporter()


def _solved(prepared: Distillation, views: Views) -> ProgressReporter:
    solve_adapters(prepared)
    return SilentReporter()


def _averaging(prepared: Distillation, views: Views) -> ProgressReporter:
    return Averaging(prepared)


def _recalibrating(prepared: Distillation, views: Views) -> ProgressReporter:
    return Recalibration(prepared, views.batch(range(len(views))))


IDEAS: dict[str, tuple[Callable[..., NetGraft], Callable[[Distillation, Views], ProgressReporter]]] = {
    "plain": (NetGraft, _plain),
    "features matched besides logits": (MatchingFeatures, _plain),
    "adapters solved by least squares": (NetGraft, _solved),
    "last quarter averaged": (NetGraft, _averaging),
    "batch norms recalibrated on plain images": (NetGraft, _recalibrating),
    "joins alone": (WithoutGrafts, _plain),
    "all blocks at once": (partial(WithoutGrafts, joins="at-once"), _plain),
}
"""What is planned, and what watches over the run."""


def measure(task: Task, idea: str, seed: int) -> dict[str, Any]:
    """Carry out one run and compare student and teacher on images that it hasn't seen."""
    source = open_data(task.data)
    labels = source.train_labels("so no subset can be drawn")
    subset = FewShotSubset.draw(labels, shots=SHOTS, seed=seed, dataset=source.name)
    teacher = load_teacher(task.teacher, weights=data_root() / task.weights if task.weights else None)
    images = source.train.load_many(subset.indices)
    method, attend = IDEAS[idea]
    policy = replace(VIEW_POLICIES["rich"], hflip=0.5 if source.hflip else 0.0)
    prepared = prepare(
        teacher,
        build_student(task.student, teacher=teacher, seed=seed),
        images,
        method=method(**SETTINGS),
        views=policy,
        init=task.init,
        runner=Runner(seed=seed, precision=task.precision),
    )
    plain = Views.configured(images, VIEW_POLICIES["plain"], prepared.data_config, seed=seed)
    finished = prepared.run(reporter=attend(prepared, plain))
    unseen = sorted(set(range(len(source.train))) - set(subset.indices))
    chosen = random.Random(0).sample(unseen, min(HELD_OUT, len(unseen)))  # nosec B311  # no secret
    loader: DataLoader[Any] = DataLoader(Subset(EvalDataset(source.train, prepared.data_config), chosen), 256)
    student_logits, teacher_logits = (predict(model, loader)[0] for model in (finished.student, teacher))
    return {
        "data": task.data,
        "student": task.student,
        "init": task.init,
        "idea": idea,
        "seed": seed,
        "error": round(100 * error(student_logits, teacher_logits), 4),
        "agreement": round(agreement(student_logits, teacher_logits), 4),
        "images": len(chosen),
        "steps": finished.trained.steps,
    }


def error(student: Tensor, teacher: Tensor) -> float:
    """Mean squared difference of logits (N, K), as a part of the variance of the teacher's."""
    return float((student - teacher).square().mean() / teacher.var(correction=0))


def run(task: Task, idea: str, seed: int) -> None:
    """Compute one run, unless its file is there."""
    path = RESULTS / f"{task.data}-{task.student}-{task.init}-{idea.replace(' ', '-')}-seed{seed}.json"
    if path.exists():
        return
    result = measure(task, idea, seed)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{path.stem}: error {result['error']} %, agreement {result['agreement']} %", flush=True)


def table(folder: Path = RESULTS) -> str:
    """Return a line for each idea and a column for each task: error of the logits in percent, over the seeds."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    found: dict[tuple[str, str], list[float]] = {}
    for result in results:
        task = ", ".join(result[key] for key in ("data", "student", "init"))
        found.setdefault((task, result["idea"]), []).append(result["error"])
    columns = [", ".join((task.data, task.student, task.init)) for task in TASKS]
    columns = [column for column in columns if any(task == column for task, _ in found)]
    return markdown(
        Table(
            title="",
            columns=(Column("idea", "idea"), *(Column(column, column, "statistic") for column in columns)),
            lines=tuple(
                Line((idea, *(Statistic.of(found.get((column, idea), [])) for column in columns)), 0) for idea in IDEAS
            ),
            notes=(
                "Mean squared difference of the logits in percent of their variance, on training images that the run "
                "has not seen: mean ± sample standard deviation over subsets, or of one subset.",
            ),
        )
    )


def main(names: Sequence[str]) -> None:
    """Run everything or the named data sets, or print what there is."""
    if names == ["table"]:
        print(table())
        return
    known = {task.data for task in TASKS}
    if not set(names) <= known:
        sys.exit(f"expected 'table' or some of {', '.join(sorted(known))}, got {' '.join(names)}")
    for seed, task, idea in product(SEEDS, TASKS, IDEAS):
        if not names or task.data in names:
            run(task, idea, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
