"""The reference point without soft knowledge: cross-entropy on classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from netgraft.grafting.pairing import Pairing
from netgraft.methods.baseline import Baseline, Objective, preset_on_rich_views
from netgraft.methods.method import About
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class Supervised(Baseline):
    """Cross-entropy on the labels, or on the teacher's arg-max where there are none."""

    about: ClassVar = About("reference", "labels", "1", "classes", "-", 0, teacher=False)

    def lesson(self, pairing: Pairing) -> Objective:
        """Classes alone."""
        return Objective(self._objective)

    def _objective(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        return {"supervised": F.cross_entropy(batch.output.float(), batch.classes)}


PRESETS = {"default": preset_on_rich_views(Supervised)}
