"""On-the-fly native ensemble (Lan, Zhu and Gong, NeurIPS 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.losses import SoftTargets
from netgraft.methods.baseline import THE_DEFAULTS, StudentTraining
from netgraft.methods.features import behind, ends, to_maps
from netgraft.methods.hyperparameters import checked, hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.methods.peers import LastLogits, Peers, reborn
from netgraft.plan import Phase, Plan, StepOutputs


class Gate(nn.Sequential):
    """Weights of the branches (B, branches), summing to one, from the shared maps (B, C, H, W).

    Args:
        channels: Width C of the shared maps.
        branches: How many there are.
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, branches), nn.BatchNorm1d(branches), nn.ReLU()
        )

    def forward(self, shared: Tensor) -> Tensor:
        """Return the weight of each branch (B, branches) in float32, for maps (B, C, H, W)."""
        return super().forward(shared).float().softmax(1)


class GatedEnsemble(nn.Module):
    """Branches and their gated mean: what the low blocks make -> logits (B, branches + 1, K), the ensemble's last.

    Args:
        branches: From the low blocks' output to logits.
        gate: From the same output to the weight of each branch, (B, branches).
    """

    def __init__(self, branches: Peers, gate: nn.Module) -> None:
        super().__init__()
        self.branches = branches
        self.gate = gate

    def forward(self, shared: Tensor) -> Tensor:
        """Return the logits (B, branches + 1, K) of all branches and, last, of their ensemble, in float32."""
        logits = self.branches(shared).float()
        ensemble = (self.gate(shared)[:, :, None] * logits).sum(1, keepdim=True)
        return torch.cat([logits, ensemble], dim=1)


@dataclass(frozen=True)
class ONE(StudentTraining):
    """On-the-fly native ensemble; see ``about``.

    The accuracy of the ensemble is reported as well. The loss is
    ``CE(ensemble) + sum_i CE_i + w sum_i tau^2 KL(ensemble || i)`` over branches ``i``, where ``w`` is
    ``exp(-5 (1 - t)^2)`` with ``t`` rising from 0 to 1 over the first steps and 1 from then on: what an untrained
    ensemble says counts little.

    Source: Lan, Zhu and Gong, NeurIPS 2018, arXiv 1806.04606. ``w`` is that of the authors' program,
    https://github.com/Lan1991Xu/ONE_NeurIPS2018, where ``t`` rises over 80 of 300 epochs.

    Raises:
        RequestError: A hyper-parameter is out of its range; there must be two branches at least.
    """

    about: ClassVar[About] = About(
        summary="Branches on shared low blocks learn from classes and from their own gated ensemble; the first is "
        "deployed.",
        category="online",
        matches="logits",
        phases="1",
        labels="classes",
        article="Lan et al., NeurIPS 2018, arXiv 1806.04606",
        year=2018,
        teacher=False,
    )
    presets: ClassVar[Mapping[str, Preset]] = {"default": THE_DEFAULTS}

    branches: int = hyperparameter(3, "how many branches", maximum=100)
    temperature: float = hyperparameter(3.0, "what logits are divided by in front of the softmax")
    rampup: float = hyperparameter(0.267, "share of the steps over which the ensemble's lesson sets in; 0: at once")

    def __post_init__(self) -> None:
        super().__post_init__()
        with checked():
            SoftTargets(self.temperature)
        if self.branches < 2:
            raise RequestError(f"branches must be at least 2, not {self.branches}")
        if not 0 <= self.rampup <= 1:
            raise RequestError(f"rampup must be from 0 to 1, not {self.rampup:g}")

    def plan(self, pairing: Pairing) -> Plan:
        """Return one phase; the last stage in front of the head branches, together with the head.

        Raises:
            RequestError: The head alone is trained, so there is nothing to branch.
        """
        blocks = pairing.student.blocks()
        border = max(ends(pairing)[-1], 1)
        low, high = blocks[:border], nn.Sequential(*blocks[border:])
        others = [reborn(high) for _ in range(self.branches - 1)]
        branches = Peers([high, *others])
        shared = pairing.student.cuts[border - 1]
        gate = behind(to_maps(shared, shared.size), Gate(shared.channels, self.branches))
        ensemble = GatedEnsemble(branches, gate)
        phase = Phase(
            name=f"{self.branches} branches",
            in_words=f"train a student of {self.branches} branches as a whole",
            model=nn.Sequential(*low, ensemble),
            trainable=nn.ModuleList([*low[pairing.inherited :], ensemble]),
            objective=self._objective,
            schedule=self.training_schedule(pairing, self.steps),
            teacher=nn.Sequential(*pairing.teacher.blocks()),
            adapters=(*others, gate),
            adapters_are="other branches and gate",
        )
        reported = nn.Sequential(*phase.model, LastLogits())
        return Plan(str(self), (phase,) if self.steps else (), nn.Sequential(*blocks), reported)

    def _objective(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        *branches, ensemble = batch.output.float().unbind(1)
        soft, nothing = SoftTargets(self.temperature), ensemble.new_zeros(())
        lessons = sum((soft(one, ensemble.detach()) for one in branches), start=nothing)
        return {
            "ensemble": F.cross_entropy(ensemble, batch.classes),
            "branches": sum((F.cross_entropy(one, batch.classes) for one in branches), start=nothing),
            "from the ensemble": sigmoid_rampup(batch.progress, self.rampup) * lessons,
        }


def sigmoid_rampup(progress: float, length: float) -> float:
    """Return ``exp(-5 (1 - progress / length)^2)`` up to ``length``, and 1 behind it (Laine and Aila, ICLR 2017)."""
    return math.exp(-5 * (1 - progress / length) ** 2) if progress < length else 1.0
