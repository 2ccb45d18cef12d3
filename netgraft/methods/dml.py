"""Deep mutual learning (Zhang et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.losses import SoftTargets
from netgraft.methods.baseline import THE_DEFAULTS, StudentTraining
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.methods.method import About, Preset
from netgraft.methods.peers import Peers, reborn
from netgraft.plan import Phase, Plan, StepOutputs


@dataclass(frozen=True)
class DML(StudentTraining):
    """Deep mutual learning; see ``about``.

    ``sum_i CE_i + mutual_weight / (peers - 1) sum_i sum_j!=i KL(p_j || p_i)``, no gradient going to peer ``j``.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384.

    Raises:
        RequestError: A hyper-parameter is out of its range; there must be two peers at least.
    """

    about: ClassVar[About] = About(
        summary="Peers learn from classes and from one another's outputs; the first is deployed.",
        category="online",
        matches="logits",
        phases="1",
        labels="classes",
        article="Zhang et al., CVPR 2018, arXiv 1706.00384",
        year=2018,
        teacher=False,
    )
    presets: ClassVar[Mapping[str, Preset]] = {"default": THE_DEFAULTS}

    peers: int = hyperparameter(2, "how many students learn together", maximum=100)
    mutual_weight: float = hyperparameter(1.0, "weight of the divergence from the other peers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.peers < 2:
            raise RequestError(f"peers must be at least 2, not {self.peers}")

    def plan(self, pairing: Pairing) -> Plan:
        """Return one phase in which all peers train; all but the first start at random."""
        blocks = pairing.student.blocks()
        front, deployed = blocks[: pairing.inherited], nn.Sequential(*blocks[pairing.inherited :])
        others = [reborn(deployed) for _ in range(self.peers - 1)]
        together = Peers([deployed, *others])
        phase = Phase(
            name=f"{self.peers} peers",
            in_words=f"train {self.peers} students that teach one another",
            model=nn.Sequential(*front, together),
            trainable=together,
            objective=self._objective,
            schedule=self.training_schedule(pairing, self.steps),
            teacher=nn.Sequential(*pairing.teacher.blocks()),
            adapters=tuple(others),
            adapters_are="other peers",
        )
        return Plan(str(self), (phase,) if self.steps else (), nn.Sequential(*blocks))

    def _objective(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        logits = batch.output.float().unbind(1)
        divergence = SoftTargets(temperature=1.0)
        hard = sum((F.cross_entropy(one, batch.classes) for one in logits), start=logits[0].new_zeros(()))
        # each peer learns from the others as they are: no gradient goes to the one that teaches
        mutual = sum(
            (divergence(one, other.detach()) for one in logits for other in logits if other is not one),
            start=logits[0].new_zeros(()),
        )
        return {"classes": hard, "mutual": self.mutual_weight / (self.peers - 1) * mutual}
