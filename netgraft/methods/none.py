"""The reference point without training: the student as it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.methods.baseline import preset_on_rich_views
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.options import check_held
from netgraft.plan import Phase, Plan, StepOutputs, TrainingSchedule


@dataclass(frozen=True)
class Untrained:
    """The reference point without training: the student as it starts; see ``about``.

    Its term is zero and so is its rate: no weight moves.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="The student as initialised, with its batch-norm statistics taken anew on the views.",
        category="reference",
        matches="nothing",
        phases="1",
        labels="none",
        article="-",
        year=0,
        teacher=False,
    )

    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views("The views of every other method, so that statistics are comparable.")
    }

    steps: int = hyperparameter(100, "batches whose statistics are averaged")
    batch_size: int = hyperparameter(64, "views a batch")

    def __post_init__(self) -> None:
        check_held(self)
        if self.batch_size < 1 or self.steps < 0:
            raise RequestError(f"batch_size must be at least 1 and steps at least 0, not {self}")

    def plan(self, pairing: Pairing) -> Plan:
        """Return one phase in train mode with a rate of zero."""
        student = pairing.student.blocks()
        phase = Phase(
            name="recalibrate batch norms",
            in_words="take new statistics of the batch norms",
            model=nn.Sequential(*student),
            trainable=nn.ModuleList(student[pairing.inherited :]),
            objective=_nothing,
            schedule=TrainingSchedule(steps=self.steps, batch_size=self.batch_size, lr=0.0, optimizer="sgd"),
        )
        return Plan(str(self), (phase,) if self.steps else (), nn.Sequential(*student))


def _nothing(batch: StepOutputs) -> Mapping[str, Tensor]:
    return {"nothing": 0.0 * batch.output.float().sum()}
