"""Attention transfer by activations (Zagoruyko and Komodakis, ICLR 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from netgraft.grafting.pairing import Pairing
from netgraft.losses import AttentionTransfer
from netgraft.methods.baseline import THE_DEFAULTS, Baseline, Objective, preset_on_rich_views
from netgraft.methods.features import ends, student_feature, teacher_feature
from netgraft.methods.hyperparameters import checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class AT(Baseline):
    """Attention transfer by activations; see ``about``.

    The loss is :class:`netgraft.losses.AttentionTransfer`.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1, arXiv 1612.03928.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Match where the features of every block end are strong, beside KD.",
        category="offline",
        matches="attention",
        phases="1",
        labels="classes",
        article="Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928",
        year=2017,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": THE_DEFAULTS,
        "paper": preset_on_rich_views(
            "Unsquared norms; the weight is this project's, since the article's 0.1 to 1e3 depends on its other terms.",
            at_form="paper",
            at_weight=1.0,
        ),
        "repdistiller": preset_on_rich_views(
            "RepDistiller's: mean squares with weight 1000 beside the classes.",
            at_form="code",
            at_weight=1000.0,
            kd_weight=0.0,
            ce_weight=1.0,
        ),
    }

    at_weight: float = hyperparameter(1000.0, "weight of the attention maps' distance (beta)")
    at_power: float = hyperparameter(2.0, "exponent of the features in a map")
    at_form: str = hyperparameter("code", "unsquared norms (paper) or mean squares (code)", choices=("paper", "code"))

    def __post_init__(self) -> None:
        super().__post_init__()
        with checked():
            AttentionTransfer(self.at_power, self.at_form)

    def objective(self, pairing: Pairing) -> Objective:
        """Return attention maps of every block end.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare.
        """
        numbers = ends(pairing)
        return Objective(
            self._terms,
            tuple(student_feature(pairing, number) for number in numbers),
            tuple(teacher_feature(pairing, number) for number in numbers),
        )

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        distance = AttentionTransfer(self.at_power, self.at_form)(batch.features, batch.teacher_features)
        return {"attention": self.at_weight * distance}
