"""Activation boundaries (Heo et al., AAAI 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from netgraft.grafting.pairing import Pairing
from netgraft.losses import ActivationBoundary
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.connectors import BoundaryConnector
from netgraft.methods.features import before_activations, ends, student_feature, teacher_feature
from netgraft.methods.hyperparameters import check_choices, checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import Feature, Phase, StepOutputs


@dataclass(frozen=True)
class AB(TermBesideClasses):
    """Activation boundaries; see ``about``.

    The teacher's side is read off its block ends: a response is positive behind a ReLU, and behind the max pool that
    may follow, exactly where one in front of it is. The student's responses are those of a connector, a convolution
    and a batch norm without a ReLU, so they have both signs. The loss is
    :class:`netgraft.losses.ActivationBoundary`, as a mean over neurons.

    With ``ab_responses`` ``pre-activation`` both are read in front of the last activation of each trained block but the
    first of all, and there is no connector where widths are equal. With ``ab_reduction`` ``doubling`` the loss of the
    i-th of n ends is ``3/1000 * 2^(i-n)`` times the sum over its neurons. Both are as in RepDistiller's program.

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
        "repdistiller": preset_on_rich_views(
            "RepDistiller's: pre-activations of all trained blocks but the first, each weighing twice what the one in "
            "front of it does; then cross-entropy.",
            ce_weight=1.0,
            ab_responses="pre-activation",
            ab_reduction="doubling",
        ),
    }

    ab_steps: int = hyperparameter(1000, "steps of the boundary phase")
    ab_margin: float = hyperparameter(1.0, "how far beyond its boundary a neuron is pushed")
    ab_responses: str = hyperparameter(
        "block-end",
        "what is compared: what leaves the blocks, or what enters their last activation",
        choices=("block-end", "pre-activation"),
    )
    ab_reduction: str = hyperparameter(
        "element",
        "mean over a block end's neurons, or their sum times 3/1000, 3/2000, 3/4000, ... from the last end on",
        choices=("element", "doubling"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "ab_responses", "ab_reduction")
        with checked():
            ActivationBoundary(self.ab_margin)

    def objective(self, pairing: Pairing) -> Objective:
        """Return nothing but a phase on boundaries, in front of the student's training.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare; or pre-activations
                are asked for, and blocks have none that can be compared.
        """
        boundaries = self._before_activations if self.ab_responses == "pre-activation" else self._behind_blocks
        return Objective(self.classes, before=(boundaries(pairing),))

    def _behind_blocks(self, pairing: Pairing) -> Phase:
        numbers = ends(pairing)
        connectors = [BoundaryConnector(pairing.widths[number][1], pairing.widths[number][0]) for number in numbers]
        return self.phase(
            pairing,
            "activation boundaries",
            self.ab_steps,
            terms=self._boundaries,
            on="which neurons fire",
            until=numbers[-1],
            features=[
                student_feature(pairing, number, connector)
                for number, connector in zip(numbers, connectors, strict=True)
            ],
            teacher_features=[teacher_feature(pairing, number) for number in numbers],
            connectors=connectors,
        )

    def _before_activations(self, pairing: Pairing) -> Phase:
        cut = before_activations(pairing)
        connectors = [None if wide == narrow else BoundaryConnector(narrow, wide) for wide, narrow in cut.widths]
        phase = self.phase(
            pairing,
            "activation boundaries",
            self.ab_steps,
            terms=self._boundaries,
            on="which neurons fire",
            until=ends(pairing)[-1],
            features=[Feature(number, connector) for number, connector in zip(cut.ends, connectors, strict=True)],
            teacher_features=[Feature(number) for number in cut.ends],
            connectors=[connector for connector in connectors if connector is not None],
        )
        return replace(phase, model=cut.student, teacher=cut.teacher)

    def _boundaries(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        loss = ActivationBoundary(self.ab_margin)
        pairs = zip(batch.features, batch.teacher_features, strict=True)
        last = len(batch.features)
        # a mean over neurons, so that no block end outweighs another by its size, unless RepDistiller's sums are asked
        return {
            f"boundary {place}": loss(student, teacher) / student[0].numel()
            if self.ab_reduction == "element"
            else 3 / 1000 * 2.0 ** (place - last) * loss(student, teacher)
            for place, (student, teacher) in enumerate(pairs, 1)
        }
