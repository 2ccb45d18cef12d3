"""Factor transfer (Kim, Park and Kwak, NeurIPS 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.losses import FactorTransfer, Hint
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.connectors import Paraphraser, Translator
from netgraft.methods.features import compared_size, ends, student_feature, teacher_feature, to_maps
from netgraft.methods.hyperparameters import checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import Phase, StepOutputs


@dataclass(frozen=True)
class FT(TermBesideClasses):
    """Factor transfer; see ``about``.

    The loss is :class:`netgraft.losses.FactorTransfer`.

    Source: Kim, Park and Kwak, NeurIPS 2018, sections 3.1 and 3.2.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="First compress the teacher's last maps to factors, then let a translator of the student's predict "
        "them.",
        category="offline",
        matches="features",
        phases="2: paraphraser, then translator and classes",
        labels="classes",
        article="Kim et al., NeurIPS 2018",
        year=2018,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views(
            "Cross-entropy, and means over a factor with weight 500, as in the authors' program, which has no norms.",
            ce_weight=1.0,
        ),
        "paper": preset_on_rich_views(
            "Cross-entropy, and the article's sum; its weight is this project's, since sums are larger.",
            ce_weight=1.0,
            ft_reduction="sample",
            ft_weight=1.0,
        ),
        "repdistiller": preset_on_rich_views(
            "RepDistiller's: cross-entropy, energies of factors with weight 200, a paraphraser without batch norms.",
            ce_weight=1.0,
            ft_weight=200.0,
            ft_form="energy",
            ft_norm=False,
        ),
    }

    ft_weight: float = hyperparameter(500.0, "weight of the factors' distance (beta)")
    ft_rate: float = hyperparameter(0.5, "width of the factor, as a part of the teacher's (k)")
    ft_reduction: str = hyperparameter(
        "element",
        "mean over a factor, as the authors' weight expects, or the article's sum",
        choices=("element", "sample"),
    )
    ft_form: str = hyperparameter(
        "factor", "what is compared: factors, or the energies of their channels", choices=("factor", "energy")
    )
    ft_norm: bool = hyperparameter(True, "batch norms in the paraphraser")
    paraphraser_steps: int = hyperparameter(500, "steps of the paraphraser's training")

    def __post_init__(self) -> None:
        super().__post_init__()
        with checked():
            Paraphraser(1, self.ft_rate)
        if self.paraphraser_steps < 1:
            raise RequestError(f"paraphraser_steps must be at least 1, not {self.paraphraser_steps}")

    def objective(self, pairing: Pairing) -> Objective:
        """Return factors, and in front the training of the paraphraser on the teacher alone.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare.
        """
        number = ends(pairing)[-1]
        wide, narrow = pairing.widths[number]
        paraphraser = Paraphraser(wide, self.ft_rate, norm=self.ft_norm)
        maps = to_maps(pairing.teacher.cuts[number], compared_size(pairing, number))
        front = [*pairing.teacher.blocks()[: number + 1], *maps]
        first = Phase(
            name="train the paraphraser",
            in_words="learn to compress the teacher's maps",
            model=nn.Sequential(*front, paraphraser),
            trainable=paraphraser,
            objective=_reconstruct,
            # it starts at random, however the student does
            schedule=replace(self.training_schedule(pairing, self.paraphraser_steps), lr=self.lr),
            teacher=nn.Sequential(*front),
        )
        translator = Translator(narrow, paraphraser.factor_channels)
        return Objective(
            self._terms,
            features=(student_feature(pairing, number, translator),),
            teacher_features=(teacher_feature(pairing, number, paraphraser.encoder),),
            before=(first,),
        )

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        distance = FactorTransfer(self.ft_reduction, self.ft_form)(batch.features[0], batch.teacher_features[0])
        return {**self.classes(batch), "factors": self.ft_weight * distance}


def _reconstruct(batch: StepOutputs) -> Mapping[str, Tensor]:
    assert batch.target is not None
    return {"reconstruction": Hint("element")(batch.output, batch.target)}
