"""Neuron selectivity transfer (Huang and Wang, 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from netgraft.hyperparameters import hyperparameter
from netgraft.losses import NeuronSelectivity
from netgraft.losses.neuron_selectivity import KERNELS
from netgraft.methods.about import About
from netgraft.methods.kd import KD
from netgraft.methods.lesson import Lesson, compared_size, ends, rich, student_feature, teacher_feature
from netgraft.pairing import Pairing
from netgraft.phases import Batch


@dataclass(frozen=True)
class NST(KD):
    """Match the sets of patterns that the channels of the last maps respond to, beside KD."""

    about: ClassVar = About("offline", "sparsity", "1", "classes", "Huang and Wang, arXiv 1707.01219", 2017)

    nst_weight: float = hyperparameter(50.0, "weight of the discrepancy (beta)")
    nst_kernel: str = hyperparameter("polynomial", "of the discrepancy", choices=KERNELS)

    def lesson(self, pairing: Pairing) -> Lesson:
        """KD and discrepancies at the last block end whose maps have more than one position."""
        numbers = ends(pairing)
        # patterns of a single position are all alike
        mapped = [number for number in numbers if max(compared_size(pairing, number)) > 1]
        chosen = (mapped or list(numbers))[-1]
        return Lesson(self._both, (student_feature(pairing, chosen),), (teacher_feature(pairing, chosen),))

    def _both(self, batch: Batch) -> Mapping[str, Tensor]:
        discrepancy = NeuronSelectivity(self.nst_kernel)(batch.features[0], batch.teacher_features[0])
        return {**self._objective(batch), "selectivity": self.nst_weight * discrepancy}


def repdistiller() -> NST:
    """RepDistiller's: weight 50 beside the classes."""
    return NST(nst_weight=50.0, kd_weight=0.0, ce_weight=1.0)


PRESETS = {"default": rich(NST), "paper": rich(NST), "repdistiller": rich(repdistiller)}
