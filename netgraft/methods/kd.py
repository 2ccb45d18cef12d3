"""Knowledge distillation (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from netgraft.hyperparameters import hyperparameter
from netgraft.losses import SoftTargets
from netgraft.methods.about import About
from netgraft.methods.lesson import Lesson, StudentTraining, answers, rich
from netgraft.pairing import Pairing
from netgraft.phases import Batch


@dataclass(frozen=True)
class KD(StudentTraining):
    """Match the teacher's softened outputs; on the labeled track, the labels a little as well."""

    about: ClassVar = About("offline", "logits", "1", "classes", "Hinton et al., arXiv 1503.02531", 2015)

    temperature: float = hyperparameter(4.0, "what logits are divided by in front of the softmax")
    kd_weight: float = hyperparameter(0.9, "weight of the soft targets; 1 on the unlabeled track")
    ce_weight: float = hyperparameter(0.1, "weight of the labels' cross-entropy; 0 on the unlabeled track")

    def lesson(self, pairing: Pairing) -> Lesson:
        """Soft targets, and labels where there are any."""
        return Lesson(self._objective)

    def _objective(self, batch: Batch) -> Mapping[str, Tensor]:
        soft = SoftTargets(self.temperature)(*answers(batch))
        if batch.labels is None:
            return {"kd": soft}
        hard = F.cross_entropy(batch.output.float(), batch.labels)
        return {"kd": self.kd_weight * soft, "labels": self.ce_weight * hard}


PRESETS = {"default": rich(KD), "paper": rich(KD)}
