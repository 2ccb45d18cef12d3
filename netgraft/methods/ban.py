"""Born-again networks (Furlanello et al., ICML 2018)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.losses import SoftTargets
from netgraft.methods.baseline import THE_DEFAULTS, StudentTraining, logits_of_both
from netgraft.methods.hyperparameters import checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.methods.peers import AveragingEnsemble
from netgraft.plan import Phase, Plan, StepOutputs


@dataclass(frozen=True)
class BAN(StudentTraining):
    """Born-again networks; see ``about``.

    The article's generations have the teacher's architecture; here they have the student's, and all start alike.
    ``steps`` are shared out among the generations. The accuracy of their ensemble is reported as well. The loss is
    :class:`netgraft.losses.SoftTargets`, beside the labels' cross-entropy on the labeled track.

    Source: Furlanello et al., ICML 2018, arXiv 1805.04770.

    Raises:
        RequestError: A hyper-parameter is out of its range, or there are fewer steps than generations, but some.
    """

    about: ClassVar[About] = About(
        summary="Generations of the student, each a fresh one taught by the last; the first by the teacher; the last "
        "is deployed.",
        category="offline",
        matches="logits",
        phases="one a generation",
        labels="classes",
        article="Furlanello et al., ICML 2018, arXiv 1805.04770",
        year=2018,
    )
    presets: ClassVar[Mapping[str, Preset]] = {"default": THE_DEFAULTS}

    generations: int = hyperparameter(3, "how many generations (k)", maximum=100)
    temperature: float = hyperparameter(1.0, "what logits are divided by in front of the softmax")
    ce_weight: float = hyperparameter(1.0, "weight of the labels' cross-entropy; 0 on the unlabeled track")

    def __post_init__(self) -> None:
        super().__post_init__()
        with checked():
            SoftTargets(self.temperature)
        if self.generations < 1:
            raise RequestError(f"generations must be at least 1, not {self.generations}")
        # one that nobody trained has nothing to teach
        if 0 < self.steps < self.generations:
            raise RequestError(f"{self.steps} steps can't be shared out among {self.generations} generations")

    def plan(self, pairing: Pairing) -> Plan:
        """Return a phase for each generation, which teaches the next one."""
        blocks = pairing.student.blocks()
        front, last = blocks[: pairing.inherited], nn.Sequential(*blocks[pairing.inherited :])
        born = [copy.deepcopy(last) for _ in range(self.generations - 1)] + [last]
        teacher = nn.Sequential(*pairing.teacher.blocks())
        phases = []
        for number, generation in enumerate(born):
            share = self.steps * (number + 1) // self.generations - self.steps * number // self.generations
            model = nn.Sequential(*front, generation)
            by = f"student {number}" if number else "the teacher"
            phases.append(
                Phase(
                    name=f"generation {number + 1}",
                    in_words=f"teach student {number + 1} of {self.generations} by {by}",
                    model=model,
                    trainable=generation,
                    objective=self._objective,
                    schedule=self.training_schedule(pairing, share),
                    teacher=teacher,
                )
            )
            teacher = model
        ensemble = AveragingEnsemble([phase.model for phase in phases])
        return Plan(str(self), tuple(p for p in phases if p.schedule.steps), nn.Sequential(*blocks), ensemble)

    def _objective(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        soft = SoftTargets(self.temperature)(*logits_of_both(batch))
        if batch.labels is None:
            return {"kd": soft}
        return {"kd": soft, "labels": self.ce_weight * F.cross_entropy(batch.output.float(), batch.labels)}
