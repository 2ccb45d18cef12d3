"""Neuron selectivity transfer (Huang and Wang, 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.grafting.pairing import Pairing
from netgraft.losses import NeuronSelectivity
from netgraft.losses.neuron_selectivity import KERNELS
from netgraft.methods.baseline import Objective, TermBesideClasses, preset_on_rich_views
from netgraft.methods.features import compared_size, ends, student_feature, teacher_feature
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.plan import StepOutputs


@dataclass(frozen=True)
class NST(TermBesideClasses):
    """Neuron selectivity transfer; see ``about``.

    The loss is :class:`netgraft.losses.NeuronSelectivity`, a squared maximum mean discrepancy.

    Source: Huang and Wang, 2017, arXiv 1707.01219.

    Raises:
        RequestError: A hyper-parameter is out of its range.
    """

    about: ClassVar[About] = About(
        summary="Match the sets of patterns that the channels of the last maps respond to, beside the classes.",
        category="offline",
        matches="sparsity",
        phases="1",
        labels="classes",
        article="Huang and Wang, arXiv 1707.01219",
        year=2017,
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "default": preset_on_rich_views(
            "The article's: cross-entropy and the discrepancy with weight 50.",
            ce_weight=1.0,
        ),
        "repdistiller": preset_on_rich_views(
            "RepDistiller's: cross-entropy, and the discrepancies of all block ends with weight 50; a first block "
            "that is trained is compared too, other than there.",
            ce_weight=1.0,
            nst_blocks="all",
        ),
    }

    nst_weight: float = hyperparameter(50.0, "weight of the discrepancy (beta)")
    nst_kernel: str = hyperparameter("polynomial", "of the discrepancy", choices=KERNELS)
    nst_blocks: str = hyperparameter(
        "last", "block ends whose discrepancies are added, of maps with more than one position", choices=("last", "all")
    )

    def objective(self, pairing: Pairing) -> Objective:
        """Return the discrepancy at the last block end, or at all, whose maps have more than one position.

        Raises:
            RequestError: The head alone is trained, so there is nothing in front of it to compare.
        """
        numbers = ends(pairing)
        # patterns of a single position are all alike
        mapped = [number for number in numbers if max(compared_size(pairing, number)) > 1] or [numbers[-1]]
        chosen = mapped if self.nst_blocks == "all" else mapped[-1:]
        return Objective(
            self._terms,
            tuple(student_feature(pairing, number) for number in chosen),
            tuple(teacher_feature(pairing, number) for number in chosen),
        )

    def _terms(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        loss = NeuronSelectivity(self.nst_kernel)
        pairs = zip(batch.features, batch.teacher_features, strict=True)
        discrepancy = torch.stack([loss(student, teacher) for student, teacher in pairs]).sum()
        return {**self.classes(batch), "selectivity": self.nst_weight * discrepancy}
