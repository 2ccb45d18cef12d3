"""NetGraft (Shen et al., "Progressive Network Grafting for Few-Shot Knowledge Distillation", AAAI 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from netgraft.batches import steps_per_epoch
from netgraft.errors import RequestError
from netgraft.grafting import Scion, assemble, graft, join, make_scions
from netgraft.hyperparameters import hyperparameter
from netgraft.losses import LogitMSE, NormalizedLogits
from netgraft.methods.about import About
from netgraft.pairing import Pairing
from netgraft.phases import Batch, Budget, Fit, Phase, Plan, Preset
from netgraft.views import VIEW_POLICIES


@dataclass(frozen=True)
class NetGraft:
    """Graft each student block into the frozen teacher alone, then join them front to back.

    Stage 1 trains block after block, each between the teacher's blocks; stage 2 joins the trained blocks
    progressively until no teacher block is left. Both compare the logits of the grafted network with the
    teacher's. No labels.
    """

    about: ClassVar = About(
        "offline", "logits", "each block, then each join", "none", "Shen et al., AAAI 2021, arXiv 2012.04915", 2021
    )

    block_steps: tuple[int, ...] = hyperparameter((300,), "steps of stage 1, a block each; the last one repeats")
    join_steps: int = hyperparameter(1000, "steps of each join in stage 2")
    batch_size: int = hyperparameter(64, "views a step")
    block_lr: tuple[float, ...] = hyperparameter((1e-3,), "peak rate in stage 1, a block each; the last one repeats")
    adapter_lr: float = hyperparameter(1e-3, "peak rate of the adapters in stage 1")
    join_lr: float = hyperparameter(1e-3, "peak rate of blocks and adapters in stage 2")
    schedule: str = hyperparameter("cosine", "of the rates in a phase", choices=("constant", "cosine", "one-cycle"))
    whole_epochs: bool = hyperparameter(False, "end a batch where an epoch ends")
    objective: str = hyperparameter(
        "mse",
        "what is compared of the logits: their direction (normalized, the article's) or themselves (mse)",
        choices=("normalized", "mse"),
    )
    sliced_rate: float = hyperparameter(0.1, "factor on all rates where the student starts from slices of the teacher")

    def __post_init__(self) -> None:
        if self.batch_size < 1 or min(self.join_steps, *self.block_steps, 0) < 0:
            raise RequestError(f"batch_size must be at least 1 and steps at least 0, not {self}")
        if not self.block_steps or not self.block_lr:
            raise RequestError(f"block_steps and block_lr need at least one value, not {self}")
        if not min(self.join_lr, self.adapter_lr, self.sliced_rate, *self.block_lr) > 0:
            raise RequestError(f"rates must be positive, not {self}")

    def plan(self, pairing: Pairing) -> Plan:
        """One phase for each block alone, then one for each join (article, "Block Grafting", "Network Grafting")."""
        first, scions = pairing.inherited, make_scions(pairing)
        factor = self.sliced_rate if pairing.init == "slice" else 1.0
        blocks = [
            self._phase(
                pairing, f"graft block {first + k + 1}", scions[k : k + 1], first + k, self._block_fit(k, factor)
            )
            for k in range(len(scions))
        ]
        joins = [
            self._phase(pairing, f"join blocks {first + 1}-{first + k}", scions[:k], first, self._join_fit(factor))
            for k in range(2, len(scions) + 1)
        ]
        return Plan(str(self), tuple(phase for phase in blocks + joins if phase.fit.steps), assemble(pairing, scions))

    def _phase(self, pairing: Pairing, name: str, scions: Sequence[Scion], at: int, fit: Fit) -> Phase:
        scion = join(scions)
        return Phase(
            name=name,
            model=graft(pairing.teacher, scion, range(at, at + len(scions))),
            trainable=scion,
            objective=self._objective,
            fit=fit,
            teacher=pairing.teacher,
            adapters=tuple(scion.adapters()),
        )

    def _objective(self, batch: Batch) -> Mapping[str, Tensor]:
        assert batch.target is not None
        if self.objective == "mse":
            return {"logits": LogitMSE()(batch.output, batch.target)}
        # times the batch size: the article's sum over the batch, whatever the number of processes
        distance = NormalizedLogits(reduction="mean")(batch.output, batch.target)
        return {"logits": self.batch_size * distance}

    def _block_fit(self, number: int, factor: float) -> Fit:
        steps = self.block_steps[min(number, len(self.block_steps) - 1)]
        lr = self.block_lr[min(number, len(self.block_lr) - 1)]
        return self._fit(steps, lr * factor, self.adapter_lr * factor)

    def _join_fit(self, factor: float) -> Fit:
        return self._fit(self.join_steps, self.join_lr * factor, self.join_lr * factor)

    def _fit(self, steps: int, lr: float, adapter_lr: float) -> Fit:
        return Fit(
            steps=steps,
            batch_size=self.batch_size,
            lr=lr,
            adapter_lr=adapter_lr,
            schedule=self.schedule,
            whole_epochs=self.whole_epochs,
        )


def default(budget: Budget) -> Preset:
    """This project's honest best: rates, batch and steps don't depend on the number of images."""
    return Preset(NetGraft(), VIEW_POLICIES["rich"])


def reference(budget: Budget) -> Preset:
    """The published code's settings for CIFAR-10, or for CIFAR-100 where there are more than ten classes.

    Batch and rates of stage 1 grow with the number of images, so that the number of steps hardly does.
    """
    scale = budget.images / budget.classes / 10
    batch_size = max(1, int(64 * scale))
    cifar10 = budget.classes <= 10
    block_epochs = (100, 60, 60) if cifar10 else (1000, 200, 200)
    block_lr = (2.5e-4, 2.5e-4, 2.5e-4) if cifar10 else (2.5e-4, 1e-3, 1e-3)
    adapter_lr, join_epochs = (2.5e-3, 100) if cifar10 else (1e-3, 150)
    epoch = steps_per_epoch(budget.images, batch_size)
    method = NetGraft(
        block_steps=tuple(epochs * epoch for epochs in block_epochs),
        join_steps=join_epochs * epoch,
        batch_size=batch_size,
        block_lr=tuple(lr * scale for lr in block_lr),
        adapter_lr=adapter_lr * scale,
        join_lr=1e-4,
        schedule="constant",
        whole_epochs=True,
        objective="normalized",
        sliced_rate=1.0,
    )
    return Preset(method, VIEW_POLICIES["crop"])


PRESETS = {"default": default, "reference": reference}
