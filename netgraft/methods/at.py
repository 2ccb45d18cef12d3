"""Attention transfer by activations (Zagoruyko and Komodakis, ICLR 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.losses import AttentionTransfer
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.features import compared_size, ends, student_feature, teacher_feature
from netgraft.methods.hyperparameters import checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class AT(TermBesideClasses):
    """Attention transfer by activations; see ``about``.

    The loss is :class:`netgraft.losses.AttentionTransfer`.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1, arXiv 1612.03928.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Match where the features of every block end are strong, beside the classes.",
        category="offline",
        matches="attention",
        phases="1",
        labels="classes",
        article="Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928",
        year=2017,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views(
            "Cross-entropy, and mean squares with weight 1000, as in the authors' program and RepDistiller's.",
            ce_weight=1.0,
        ),
        "paper": preset_on_rich_views(
            "Cross-entropy, and unsquared norms; their weight is this project's, of a range that the article gives.",
            ce_weight=1.0,
            at_form="paper",
            at_weight=1.0,
        ),
        "repdistiller": preset_on_rich_views(
            "RepDistiller's, the same as default; a first block that is trained is compared too, other than there.",
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
        """Return attention maps of every block end that has more than one position.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare, or no block end has
                more than one position.
        """
        # a single position is all of the attention, in both networks
        compared = [number for number in ends(pairing) if max(compared_size(pairing, number)) > 1]
        left_out = [str(number + 1) for number in ends(pairing) if number not in compared]
        if not compared:
            raise RequestError(
                "at compares where maps are strong, and no block ends with more than one position; choose another "
                "method, or larger images"
            )
        note = f"at compares no attention behind block {', '.join(left_out)}, where maps have one position"
        return Objective(
            self._terms,
            tuple(student_feature(pairing, number) for number in compared),
            tuple(teacher_feature(pairing, number) for number in compared),
            notes=(note,) if left_out else (),
        )

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        distance = AttentionTransfer(self.at_power, self.at_form)(batch.features, batch.teacher_features)
        return {**self.classes(batch), "attention": self.at_weight * distance}
