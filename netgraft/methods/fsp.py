"""Flow of the solution procedure (Yim et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from netgraft.errors import RequestError
from netgraft.grafting.adapters import Projector
from netgraft.grafting.pairing import Pairing
from netgraft.losses import FlowOfSolution
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.features import student_feature, teacher_feature
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class FSP(TermBesideClasses):
    """Flow of the solution procedure; see ``about``.

    The article assumes equal widths; where they differ, a bias-free 1x1 convolution brings the student's maps to the
    teacher's width, and is discarded. The loss is :class:`netgraft.losses.FlowOfSolution`.

    Source: Yim et al., CVPR 2017, equations 1 and 2.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="First match how channels at a block's start and end go together, then learn the classes.",
        category="offline",
        matches="relations",
        phases="2: flows, then classes",
        labels="classes",
        article="Yim et al., CVPR 2017",
        year=2017,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views(
            "Cross-entropy behind the phase of flows, which are compared by means.",
            ce_weight=1.0,
        ),
        "paper": preset_on_rich_views(
            "The article's: cross-entropy behind a phase of flows, which are compared by sums.",
            ce_weight=1.0,
            fsp_reduction="sample",
        ),
    }

    fsp_steps: int = hyperparameter(1000, "steps of the flow phase")
    fsp_reduction: str = hyperparameter(
        "element", "mean over a flow matrix, or the article's sum", choices=("element", "sample")
    )

    def objective(self, pairing: Pairing) -> Objective:
        """Return nothing but a phase on flows, in front of the student's training.

        Raises:
            RequestError: No trained block lies between two cuts.
        """
        numbers = range(max(0, pairing.inherited - 1), len(pairing) - 1)
        if len(numbers) < 2 or numbers[-1] < pairing.inherited:
            raise RequestError(
                "fsp needs a trained block between two cuts, there is none; take a deeper pair or add --inherit none"
            )
        projectors = [
            None if wide == narrow else Projector(narrow, wide)
            for wide, narrow in (pairing.widths[number] for number in numbers)
        ]
        flows = self.phase(
            pairing,
            "flows",
            self.fsp_steps,
            terms=self._flows,
            on="the teacher's flows",
            until=numbers[-1],
            features=[
                student_feature(pairing, number, projector)
                for number, projector in zip(numbers, projectors, strict=True)
            ],
            teacher_features=[teacher_feature(pairing, number) for number in numbers],
            connectors=[projector for projector in projectors if projector is not None],
        )
        return Objective(self.classes, before=(flows,))

    def _flows(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        student, teacher = (list(pairwise(maps)) for maps in (batch.features, batch.teacher_features))
        return {"flows": FlowOfSolution(self.fsp_reduction)(student, teacher)}
