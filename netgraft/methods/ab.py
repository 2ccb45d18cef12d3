"""Activation boundaries (Heo et al., AAAI 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from netgraft.grafting.pairing import Pairing
from netgraft.losses import ActivationBoundary
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.connectors import BoundaryConnector
from netgraft.methods.features import ends, student_feature, teacher_feature
from netgraft.methods.hyperparameters import checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class AB(TermBesideClasses):
    """Activation boundaries; see ``about``.

    The teacher's side is read off its block ends: a response is positive behind a ReLU, and behind the max pool that
    may follow, exactly where one in front of it is. The student's responses are those of a connector, a convolution
    and a batch norm without a ReLU, so they have both signs. The loss is
    :class:`netgraft.losses.ActivationBoundary`, as a mean over neurons.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    AAAI 2019, arXiv 1811.03233.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="First push all neurons of the block ends to the teacher's side of their boundaries, then learn "
        "the classes.",
        category="offline",
        matches="features",
        phases="2: boundaries, then classes",
        labels="classes",
        article="Heo et al., AAAI 2019, arXiv 1811.03233",
        year=2019,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views(
            "Cross-entropy behind the phase of boundaries; the article's own second phase is KD: kd+ab.",
            ce_weight=1.0,
        ),
    }

    ab_steps: int = hyperparameter(1000, "steps of the boundary phase")
    ab_margin: float = hyperparameter(1.0, "how far beyond its boundary a neuron is pushed")

    def __post_init__(self) -> None:
        super().__post_init__()
        with checked():
            ActivationBoundary(self.ab_margin)

    def objective(self, pairing: Pairing) -> Objective:
        """Return nothing but a phase on boundaries, in front of the student's training.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare.
        """
        numbers = ends(pairing)
        connectors = [BoundaryConnector(pairing.widths[number][1], pairing.widths[number][0]) for number in numbers]
        boundaries = self.phase(
            pairing,
            "activation boundaries",
            self.ab_steps,
            terms=self._boundaries,
            until=numbers[-1],
            features=[
                student_feature(pairing, number, connector)
                for number, connector in zip(numbers, connectors, strict=True)
            ],
            teacher_features=[teacher_feature(pairing, number) for number in numbers],
            connectors=connectors,
        )
        return Objective(self.classes, before=(boundaries,))

    def _boundaries(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        loss = ActivationBoundary(self.ab_margin)
        pairs = zip(batch.features, batch.teacher_features, strict=True)
        # a mean over neurons, so that no block end outweighs another by its size
        return {
            f"boundary {place}": loss(student, teacher) / student[0].numel()
            for place, (student, teacher) in enumerate(pairs, 1)
        }
