"""What a method asks for and training carries out: a plan of phases, as data that prints itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.options import MOST_STEPS

MOST_VIEWS_A_STEP = 10**6


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of batches in an epoch when none crosses its end.

    Args:
        images: Of an epoch.
        batch_size: Images a batch; the last one may be smaller.
    """
    return -(-images // batch_size)


@dataclass(frozen=True)
class TrainingSchedule:
    """How long and how fast a phase trains.

    Attributes:
        steps: Optimiser steps.
        batch_size: Views a step, over all processes.
        lr: Peak learning rate.
        adapter_lr: Peak rate of the phase's adapters; ``lr`` when None.
        optimizer: ``adam``, ``adamw``, or ``sgd`` with Nesterov momentum 0.9.
        lr_schedule: ``constant``; ``cosine`` to zero; ``one-cycle``: up over the first quarter, down to zero.
        weight_decay: L2 penalty on weights with more than one dimension; of ``adamw`` the part of them, times the rate,
            that goes at each step (Loshchilov & Hutter, ICLR 2019).
        whole_epochs: A batch never crosses the end of an epoch; the last of an epoch is smaller.

    Raises:
        RequestError: A number is not finite or outside its range.
    """

    steps: int
    batch_size: int
    lr: float
    adapter_lr: float | None = None
    optimizer: str = "adam"
    lr_schedule: str = "constant"
    weight_decay: float = 0.0
    whole_epochs: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= MOST_STEPS:
            raise RequestError(
                f"steps of a phase must be from 0 to {MOST_STEPS:,}, not {self.steps:.12g}; give another"
            )
        if not 1 <= self.batch_size <= MOST_VIEWS_A_STEP:
            raise RequestError(
                f"batch_size must be from 1 to {MOST_VIEWS_A_STEP:,}, not {self.batch_size:.12g}; give another"
            )
        rates = {"lr": self.lr, "adapter_lr": self.adapter_lr, "weight_decay": self.weight_decay}
        for name, rate in rates.items():
            if rate is not None and not (rate >= 0 and math.isfinite(rate)):
                raise RequestError(f"{name} must be a finite number of at least 0, not {rate}; give another")

    def factor(self, step: int) -> float:
        """Return what the peak rates are multiplied by at a step.

        Args:
            step: Number of the step in its phase, from 0.

        Raises:
            ValueError: The schedule of the rates has another name.
        """
        if self.lr_schedule == "constant":
            return 1.0
        progress = (step + 0.5) / self.steps
        if self.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.lr_schedule == "one-cycle":
            rise = 0.25
            if progress < rise:
                return 0.5 * (1 - math.cos(math.pi * progress / rise))
            return 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))
        raise ValueError(f"schedule must be constant, cosine or one-cycle, not {self.lr_schedule!r}")


@dataclass(frozen=True, eq=False)
class Feature:
    """What an objective sees of a model besides its output.

    Attributes:
        block: Number of the block whose output it is, from 0; -1 for what enters the first block.
        connector: What that output passes through first, a projection to another width for instance. A student's
            connector that has weights is a part of the phase's trainable part; a teacher's stays frozen.
    """

    block: int
    connector: nn.Module | None = None


@dataclass(frozen=True)
class StepOutputs:
    """What an objective sees of one step, on a batch of B views.

    Attributes:
        output: Of the phase's model: logits (B, K), or (B, ...) where the model ends before the head or in several
            networks side by side.
        target: Of the phase's teacher on the same views, (B, K) or (B, ...); None without a teacher.
        labels: Class indices (B,); None on the unlabeled track.
        features: Of the model, (B, ...) each: those that the phase names, in its order.
        teacher_features: Likewise, of the teacher.
        inputs: What the first trained block took in, (B, ...), if the phase differentiates ``output`` by it.
        whole_batch: How many views the batch has of which these B are this process's part; None if they are all.
        progress: Share of the phase's steps that are done, 0 at the first one, for weights that set in gradually.
    """

    output: Tensor
    target: Tensor | None
    labels: Tensor | None
    features: tuple[Tensor, ...] = ()
    teacher_features: tuple[Tensor, ...] = ()
    inputs: Tensor | None = None
    whole_batch: int | None = None
    progress: float = 1.0

    @property
    def batch_size(self) -> int:
        """How many views the whole batch has, over all processes that share it.

        Times a mean over these B it is a term of a sum over the batch: processes' means are averaged, each counting by
        its part of the batch.
        """
        return len(self.output) if self.whole_batch is None else self.whole_batch

    @property
    def classes(self) -> Tensor:
        """Class indices (B,): labels, or the teacher's arg-max on the unlabeled track."""
        if self.labels is not None:
            return self.labels
        assert self.target is not None, "neither labels nor a teacher"
        return self.target.argmax(1)


ObjectiveFunction = Callable[[StepOutputs], Mapping[str, Tensor]]
"""From what one step computes to named terms, scalars that are summed."""


@dataclass(frozen=True, eq=False)
class Phase:
    """One stretch of training.

    Attributes:
        name: For people.
        model: What runs, a sequence of blocks that ends where the objective ends; in eval mode except for
            ``trainable``.
        trainable: The only part that is optimised and in train mode.
        objective: Named terms that are summed; each is a mean over the batch, or ``StepOutputs.batch_size`` times one,
            so that the sum doesn't depend on how many processes share it.
        schedule: Steps and rates.
        teacher: Runs on the same views; its output is ``StepOutputs.target``.
        adapters: Modules inside ``trainable`` that have their own rate, ``schedule.adapter_lr``.
        adapters_are: What these are, for people: where a student starts close to the teacher, for instance, what is
            trained beside it from a random start.
        features: Of the model, which the objective compares as well.
        teacher_features: Of the teacher.
        differentiates_input: Whether the objective needs gradients with respect to ``StepOutputs.inputs``.
        in_words: What happens, in words that need no article to be understood; the name if empty.
    """

    name: str
    model: nn.Sequential
    trainable: nn.Module
    objective: ObjectiveFunction
    schedule: TrainingSchedule
    teacher: nn.Sequential | None = None
    adapters: tuple[nn.Module, ...] = ()
    adapters_are: str = "adapters"
    features: tuple[Feature, ...] = ()
    teacher_features: tuple[Feature, ...] = ()
    differentiates_input: bool = False
    in_words: str = ""

    def length(self) -> str:
        """Say in a line what is trained, for how many steps and on how many views in each."""
        return f"{self.in_words or self.name}: {self.schedule.steps:,} steps of {self.schedule.batch_size}"

    def line(self) -> str:
        """Say in a line what is trained, for how many steps and at which rate."""
        return f"{self.in_words or self.name}: {self.schedule.steps:,} steps, rate {self.schedule.lr:g}"

    @property
    def beside(self) -> str:
        """Say what learns at a rate of its own, and at which; empty where nothing does."""
        own = bool(self.adapters) and self.schedule.adapter_lr not in {None, self.schedule.lr}
        return f"rate of {self.adapters_are}: {self.schedule.adapter_lr:g}" if own else ""

    def identity(self) -> dict[str, Any]:
        """Return what tells the phase apart from others, its weights aside, as plain values; not its name."""
        return {
            "schedule": self.schedule,
            "parameters": sum(p.numel() for p in self.trainable.parameters()),
            "adapter_parameters": sum(p.numel() for adapter in self.adapters for p in adapter.parameters()),
            "features": [feature.block for feature in self.features],
            "teacher_features": [feature.block for feature in self.teacher_features],
        }

    def __str__(self) -> str:
        count = sum(p.numel() for p in self.trainable.parameters())
        extra = sum(p.numel() for adapter in self.adapters for p in adapter.parameters())
        schedule = self.schedule
        rates = f"lr {schedule.lr:g}"
        if extra and schedule.adapter_lr is not None:
            rates += f", {self.adapters_are} {schedule.adapter_lr:g}"
        what = f"{count:,} parameters" + (f" ({extra:,} in {self.adapters_are})" if extra else "")
        length = f"{schedule.steps} steps of {schedule.batch_size}"
        return f"{self.name}: {length}, {schedule.optimizer} {rates} {schedule.lr_schedule}; {what}"


@dataclass(frozen=True, eq=False)
class Plan:
    """What a method will do: phases in order, printable before anything runs.

    Attributes:
        method: The method with its hyper-parameters.
        phases: In order.
        student: What is deployed at the end, adapters included: the layers that follow one another.
        ensemble: Networks trained on the way whose common logits, (B, C, H, W) -> (B, K), are worth reporting; larger
            than the student, and not deployed.
        notes: What a reader must know besides, such as what is not compared.
        keeps_statistics: Of which module's batch norms go by the statistics that they start with, in training too;
            None where all take those of each batch.
    """

    method: str
    phases: tuple[Phase, ...]
    student: nn.Sequential
    ensemble: nn.Module | None = None
    notes: tuple[str, ...] = ()
    keeps_statistics: nn.Module | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.schedule.steps for phase in self.phases)

    def lines(self) -> list[str]:
        """Say in a line a phase what will happen; ``str`` has all hyper-parameters besides."""
        count = len(self.phases)
        views = " or ".join(str(size) for size in dict.fromkeys(phase.schedule.batch_size for phase in self.phases))
        first = f"plan: {self.steps:,} steps in all" + (f", of {views} views each" if views else "")
        numbered = [f"  {number} of {count}: {phase.line()}" for number, phase in enumerate(self.phases, 1)]
        return [first, *numbered, *self._beside(), *(f"  note: {note}" for note in self.notes)]

    def _beside(self) -> list[str]:
        """Say what learns at a rate of its own, with the numbers of the phases where it isn't all of them."""
        phases: dict[str, list[int]] = {}
        for number, phase in enumerate(self.phases, 1):
            phases.setdefault(phase.beside, []).append(number)
        return [
            f"  {what}" if len(numbers) == len(self.phases) else f"  {what}, in phases {', '.join(map(str, numbers))}"
            for what, numbers in phases.items()
            if what
        ]

    def __str__(self) -> str:
        lines = [f"{self.method}: {len(self.phases)} phases, {self.steps} steps"]
        lines += [f"  {number}. {phase}" for number, phase in enumerate(self.phases, 1)]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
