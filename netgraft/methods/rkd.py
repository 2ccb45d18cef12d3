"""Relational knowledge distillation (Park et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from netgraft.grafting.pairing import Pairing
from netgraft.losses import RelationalAngle, RelationalDistance
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.connectors import Embedding
from netgraft.methods.features import ends, student_feature, teacher_feature
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class RKD(TermBesideClasses):
    """Relational knowledge distillation; see ``about``.

    The losses are :class:`netgraft.losses.RelationalDistance` and :class:`netgraft.losses.RelationalAngle`.

    Source: Park et al., CVPR 2019, sections 3.2.1 and 3.2.2, arXiv 1904.05068.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Match distances and angles between a batch's embeddings, averages of the last maps, beside the "
        "classes.",
        category="offline",
        matches="relations",
        phases="1",
        labels="classes",
        article="Park et al., CVPR 2019, arXiv 1904.05068",
        year=2019,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views(
            "The article's: cross-entropy, distances with weight 25 and angles with weight 50.", ce_weight=1.0
        ),
        "repdistiller": preset_on_rich_views("RepDistiller's: the same as default.", ce_weight=1.0),
    }

    distance_weight: float = hyperparameter(25.0, "weight of the distances")
    angle_weight: float = hyperparameter(50.0, "weight of the angles")

    def objective(self, pairing: Pairing) -> Objective:
        """Return relations at the last block end.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare.
        """
        number = ends(pairing)[-1]
        return Objective(
            self._terms,
            (student_feature(pairing, number, Embedding()),),
            (teacher_feature(pairing, number, Embedding()),),
        )

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        [student], [teacher] = batch.features, batch.teacher_features
        return {
            **self.classes(batch),
            "distances": self.distance_weight * RelationalDistance()(student, teacher),
            "angles": self.angle_weight * RelationalAngle()(student, teacher),
        }
