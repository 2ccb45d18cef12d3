"""Knowledge distillation (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.losses import SoftTargets
from netgraft.methods.baseline import THE_DEFAULTS, Baseline, Objective, logits_of_both
from netgraft.methods.hyperparameters import checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class KD(Baseline):
    """Knowledge distillation; see ``about``.

    The loss is :class:`netgraft.losses.SoftTargets`.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, 2015, section 2.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Match the teacher's softened outputs; on the labeled track, the labels a little as well.",
        category="offline",
        matches="logits",
        phases="1",
        labels="classes",
        article="Hinton et al., arXiv 1503.02531",
        year=2015,
    )

    presets: ClassVar[Mapping[str, Preset]] = {"default": THE_DEFAULTS}

    temperature: float = hyperparameter(4.0, "what logits are divided by in front of the softmax")
    kd_weight: float = hyperparameter(0.9, "weight of the soft targets on the labeled track; 1 on the other, unless 0")
    ce_weight: float = hyperparameter(0.1, "weight of the cross-entropy on labels, or on answers if kd_weight is 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise RequestError(f"temperature must be positive, not {self}")
        with checked():
            SoftTargets(self.temperature)

    def objective(self, pairing: Pairing) -> Objective:
        """Return soft targets, and labels where there are any."""
        return Objective(self._terms)

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        terms = {}
        if self.kd_weight:
            weight = 1.0 if batch.labels is None else self.kd_weight
            terms["kd"] = weight * SoftTargets(self.temperature)(*logits_of_both(batch))
        # the teacher's arg-max adds nothing to its soft targets, but stands in where there are none
        if self.ce_weight and (batch.labels is not None or not self.kd_weight):
            terms["classes"] = self.ce_weight * F.cross_entropy(batch.output.float(), batch.classes)
        return terms
