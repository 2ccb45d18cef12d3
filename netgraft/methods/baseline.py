"""What the baselines have in common: they train the student itself, on an objective of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.options import check_held
from netgraft.plan import Feature, ObjectiveFunction, Phase, Plan, StepOutputs, TrainingSchedule


def no_terms(batch: StepOutputs) -> Mapping[str, Tensor]:
    """Return no terms: for methods that only add phases in front of the student's training."""
    return {}


@dataclass(frozen=True, eq=False)
class Objective:
    """What the student is taught, apart from how long and how fast.

    Attributes:
        terms: From what one step computes to named terms, weighted scalars; each a mean over the batch.
        features: Of the student, numbered by its blocks; the terms find them in ``StepOutputs.features``.
        teacher_features: Of the teacher; likewise in ``StepOutputs.teacher_features``.
        differentiates_input: Whether the terms need gradients with respect to what enters the trained blocks.
        before: Phases that come first: of helpers, or of a part of the student.
        notes: What a reader of the plan must know, such as what is not compared.
    """

    terms: ObjectiveFunction = no_terms
    features: tuple[Feature, ...] = ()
    teacher_features: tuple[Feature, ...] = ()
    differentiates_input: bool = False
    before: tuple[Phase, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudentTraining:
    """How long and how fast the student is trained; what it is taught is up to the method.

    Raises:
        RequestError: A hyper-parameter is out of its range: a rate must be positive, a weight at least 0.
    """

    steps: int = hyperparameter(3000, "steps of the student's training")
    batch_size: int = hyperparameter(64, "views a step")
    lr: float = hyperparameter(1e-3, "peak rate")
    schedule: str = hyperparameter("cosine", "of the rate in a phase", choices=("constant", "cosine", "one-cycle"))
    optimizer: str = hyperparameter("adam", "adam, or sgd with Nesterov momentum 0.9", choices=("adam", "sgd"))
    weight_decay: float = hyperparameter(0.0, "L2 penalty on convolutions and linear layers")
    sliced_rate: float = hyperparameter(0.1, "factor on all rates where the student starts with slices of all layers")

    def __post_init__(self) -> None:
        check_held(self)
        if self.batch_size < 1 or self.steps < 0 or self.weight_decay < 0:
            raise RequestError(f"batch_size must be at least 1, steps and weight_decay at least 0, not {self}")
        if not min(self.lr, self.sliced_rate) > 0:
            raise RequestError(f"rates must be positive, not {self}")
        negative = [f.name for f in fields(self) if f.name.endswith("_weight") and getattr(self, f.name) < 0]
        if negative:
            raise RequestError(f"{negative[0]} can't be negative, not {self}")

    def training_schedule(self, pairing: Pairing, steps: int) -> TrainingSchedule:
        """Return length and rates of a phase.

        Args:
            pairing: The rate is smaller where its student starts close to the teacher; ``adapter_lr``, of what is
                trained beside it from a random start, is not.
            steps: Optimiser steps.

        Raises:
            RequestError: The number of steps is negative.
        """
        if steps < 0:
            raise RequestError(f"steps of a phase must be at least 0, not {steps}, in {self}")
        return TrainingSchedule(
            steps=steps,
            batch_size=self.batch_size,
            lr=self.lr * (self.sliced_rate if pairing.starts_close else 1.0),
            adapter_lr=self.lr if pairing.starts_close else None,
            optimizer=self.optimizer,
            lr_schedule=self.schedule,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True)
class Baseline(StudentTraining, ABC):
    """Train every block of the student that is not inherited, on an objective.

    Inherited blocks stay frozen, as in every method. A method says what it adds to the objective, and combinations of
    methods add objectives up.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About]
    presets: ClassVar[Mapping[str, Preset]]

    @abstractmethod
    def objective(self, pairing: Pairing) -> Objective:
        """Return what the student is taught.

        Args:
            pairing: Teacher and student.

        Raises:
            RequestError: The pairing has nothing to compare.
        """

    def plan(self, pairing: Pairing) -> Plan:
        """Return the objective's own phases, then the student's training; those without steps are left out.

        Args:
            pairing: Teacher and student.

        Raises:
            RequestError: The pairing has nothing to compare, or a number of steps is negative.
        """
        objective = self.objective(pairing)
        connectors = [feature.connector for feature in objective.features if feature.connector is not None]
        main = self.phase(
            pairing,
            "train the student",
            self.steps,
            terms=objective.terms,
            features=objective.features,
            teacher_features=objective.teacher_features,
            connectors=connectors,
            differentiates_input=objective.differentiates_input,
        )
        phases = tuple(phase for phase in (*objective.before, main) if phase.schedule.steps)
        return Plan(str(self), phases, nn.Sequential(*pairing.student.blocks()), notes=objective.notes)

    def phase(
        self,
        pairing: Pairing,
        name: str,
        steps: int,
        *,
        terms: ObjectiveFunction,
        on: str = "",
        until: int | None = None,
        features: Sequence[Feature] = (),
        teacher_features: Sequence[Feature] = (),
        connectors: Sequence[nn.Module] = (),
        differentiates_input: bool = False,
    ) -> Phase:
        """Make a phase that trains the student's blocks, with some connectors.

        Args:
            pairing: Teacher and student.
            name: For people.
            steps: Optimiser steps.
            terms: Named terms that are summed, each a mean over the batch.
            on: What of the teacher the blocks are trained on, in plain words, where it isn't what the method is for.
            until: Number of the last block that student and teacher run; all by default.
            features: Of the student.
            teacher_features: Of the teacher.
            connectors: Trained along with the student and then discarded.
            differentiates_input: See :class:`netgraft.plan.Phase`.

        Raises:
            RequestError: The number of steps is negative.
        """
        stop = len(pairing) if until is None else until + 1
        student, teacher = pairing.student.blocks()[:stop], pairing.teacher.blocks()[:stop]
        trainable = nn.ModuleList([*student[pairing.inherited :], *connectors])
        return Phase(
            name=name,
            in_words=f"train {_trained(pairing, stop)}" + (f" on {on}" if on else ""),
            model=nn.Sequential(*student),
            trainable=trainable,
            objective=terms,
            schedule=self.training_schedule(pairing, steps),
            teacher=nn.Sequential(*teacher),
            adapters=(*connectors, *pairing.fresh_in(trainable)),
            adapters_are="connectors",
            features=tuple(features),
            teacher_features=tuple(teacher_features),
            differentiates_input=differentiates_input,
        )


def _trained(pairing: Pairing, stop: int) -> str:
    """Say which of the student's blocks, up to number ``stop``, aren't inherited."""
    first = pairing.inherited + 1
    if stop < len(pairing):
        return f"block {stop}" if first == stop else f"blocks {first}-{stop}"
    if first == 1:
        return "the whole student"
    return "the head of the student" if first == stop else f"blocks {first}-{stop} of the student"


HEAD_IS_NOT_TAUGHT = "no term compares logits or classes, so the head stays as it starts; add kd or supervised"


@dataclass(frozen=True)
class TermBesideClasses(Baseline):
    """A baseline whose article adds a term of its own to the cross-entropy with the classes.

    The hyper-parameter's default is none of it, so that a combination adds terms alone; presets bring it along.
    """

    ce_weight: float = hyperparameter(
        0.0, "weight of the cross-entropy with the labels, or with the teacher's arg-max where there are none"
    )

    def plan(self, pairing: Pairing) -> Plan:
        """Return the plan of a baseline, with a note where nothing teaches the head."""
        plan = super().plan(pairing)
        return plan if self.ce_weight else replace(plan, notes=(*plan.notes, HEAD_IS_NOT_TAUGHT))

    def classes(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        """Return the cross-entropy as a term, none where its weight is 0."""
        if not self.ce_weight:
            return {}
        return {"classes": self.ce_weight * F.cross_entropy(batch.output.float(), batch.classes)}


def preset_on_rich_views(meaning: str, **hyperparameters: Any) -> Preset:
    """Make a preset that depends on no budget, with the same views as NetGraft's default.

    Args:
        meaning: In a sentence.
        hyperparameters: Those that differ from the defaults.
    """
    return Preset(meaning, VIEW_POLICIES["rich"], lambda budget: hyperparameters)


THE_DEFAULTS = preset_on_rich_views("The options' defaults, which are the article's where it names them.")


def logits_of_both(batch: StepOutputs) -> tuple[Tensor, Tensor]:
    """Return the logits (B, K) of student and teacher."""
    assert batch.target is not None, "a method with a teacher has its logits"
    return batch.output, batch.target
