"""The reference point without soft knowledge: cross-entropy on classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from netgraft.methods.about import About
from netgraft.methods.lesson import Lesson, LessonMethod, rich
from netgraft.pairing import Pairing
from netgraft.phases import Batch


@dataclass(frozen=True)
class Supervised(LessonMethod):
    """Cross-entropy on the labels, or on the teacher's arg-max where there are none."""

    about: ClassVar = About("reference", "labels", "1", "classes", "-", 0, teacher=False)

    def lesson(self, pairing: Pairing) -> Lesson:
        """Classes alone."""
        return Lesson(self._objective)

    def _objective(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"supervised": F.cross_entropy(batch.output.float(), batch.classes)}


PRESETS = {"default": rich(Supervised)}
