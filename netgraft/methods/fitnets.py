"""FitNets (Romero et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from netgraft.grafting.pairing import Pairing
from netgraft.losses import Hint
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.connectors import NormalizedRegressor, Regressor
from netgraft.methods.features import compared_size, middle, student_feature, teacher_feature, to_maps
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs

REGRESSORS: Mapping[str, Callable[[int, int], nn.Module]] = {"linear": Regressor, "norm-relu": NormalizedRegressor}


@dataclass(frozen=True)
class FitNets(TermBesideClasses):
    """FitNets; see ``about``.

    The loss is :class:`netgraft.losses.Hint`, behind a convolutional regressor to the teacher's width.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, arXiv 1412.6550.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="First predict the teacher's features from the student's middle, then learn the classes.",
        category="offline",
        matches="features",
        phases="2: hint, then classes",
        labels="classes",
        article="Romero et al., ICLR 2015, arXiv 1412.6550",
        year=2015,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views(
            "Cross-entropy behind the phase of hints; the article's own second phase is KD: kd+fitnets.",
            ce_weight=1.0,
        ),
        "repdistiller": preset_on_rich_views(
            "RepDistiller's: cross-entropy and the hint with weight 100 in one phase, by a regressor with batch norm "
            "and ReLU.",
            ce_weight=1.0,
            hint_steps=0,
            hint_weight=100.0,
            hint_regressor="norm-relu",
        ),
    }

    hint_steps: int = hyperparameter(1000, "steps of the hint phase")
    hint_reduction: str = hyperparameter(
        "element", "mean over a sample's features, or the article's sum", choices=("element", "sample")
    )
    hint_regressor: str = hyperparameter(
        "linear", "a convolution alone, or with a batch norm and a ReLU behind it", choices=("linear", "norm-relu")
    )
    hint_weight: float = hyperparameter(0.0, "weight of the hint in the student's training, behind its own phase")

    def objective(self, pairing: Pairing) -> Objective:
        """Return the hint, and in front a phase of hints alone in which neither network runs beyond the middle.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare.
        """
        number = middle(pairing)
        wide, narrow = pairing.widths[number]
        regressor = REGRESSORS[self.hint_regressor](narrow, wide)
        hint = self.phase(
            pairing,
            f"hint behind block {number + 1}",
            self.hint_steps,
            terms=self._hint,
            on="the teacher's maps",
            until=number,
            features=(student_feature(pairing, number, regressor),),
            connectors=(regressor,),
        )
        # the hint is all that the teacher gives in its phase
        front = pairing.teacher.blocks()[: number + 1]
        maps = to_maps(pairing.teacher.cuts[number], compared_size(pairing, number))
        hint = replace(hint, teacher=nn.Sequential(*front, *maps))
        if not self.hint_weight:
            return Objective(self.classes, before=(hint,))
        return Objective(self._terms, hint.features, (teacher_feature(pairing, number),), before=(hint,))

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        hint = Hint(self.hint_reduction)(batch.features[0], batch.teacher_features[0])
        return {**self.classes(batch), "hint": self.hint_weight * hint}

    def _hint(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        assert batch.target is not None
        [feature] = batch.features
        return {"hint": Hint(self.hint_reduction)(feature, batch.target)}
