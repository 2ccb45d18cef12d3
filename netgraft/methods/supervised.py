"""The reference point without soft knowledge: cross-entropy on classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from netgraft.grafting.pairing import Pairing
from netgraft.methods.baseline import THE_DEFAULTS, Baseline, Objective
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class Supervised(Baseline):
    """The reference point without soft knowledge: cross-entropy on classes; see ``about``.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Cross-entropy on the labels, or on the teacher's arg-max where there are none.",
        category="reference",
        matches="labels",
        phases="1",
        labels="classes",
        article="-",
        year=0,
        teacher=False,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": THE_DEFAULTS,
    }

    def objective(self, pairing: Pairing) -> Objective:
        """Return classes alone."""
        return Objective(self._terms)

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        return {"supervised": F.cross_entropy(batch.output.float(), batch.classes)}
