"""Train a teacher with labels, for people who have none: the runner's loop over one phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.batches import steps_per_epoch
from netgraft.errors import RequestError
from netgraft.hyperparameters import hyperparameter
from netgraft.phases import Batch, Fit, Phase, Plan
from netgraft.views import ViewPolicy


@dataclass(frozen=True)
class SupervisedTraining:
    """SGD with Nesterov momentum over one learning-rate cycle, on labelled images (He et al. 2016; Smith 2018)."""

    epochs: int = hyperparameter(30, "how often each image is seen, each time through another view")
    batch_size: int = hyperparameter(128, "views a step")
    lr: float = hyperparameter(0.1, "peak rate")
    weight_decay: float = hyperparameter(5e-4, "L2 penalty on convolutions and linear layers")
    label_smoothing: float = hyperparameter(0.0, "probability mass spread over the other classes")

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise RequestError(f"epochs and batch_size must be at least 1, not {self.epochs} and {self.batch_size}")

    def views(self, images: int, size: tuple[int, int, int], hflip: bool) -> ViewPolicy:
        """As many views of each image as there are epochs: shifted crops of small images, resized ones of others."""
        small = max(size[1:]) <= 64
        return ViewPolicy(
            "train",
            pad=max(size[1:]) // 8 if small else 0,
            crop_scale=None if small else (0.25, 1.0),
            hflip=0.5 if hflip else 0.0,
            colour=0.0 if small else 0.2,
            pool=images * self.epochs,
        )

    def plan(self, model: nn.Module, images: int) -> Plan:
        """One phase over the whole model."""
        chain = nn.Sequential(model)
        fit = Fit(
            steps=self.epochs * steps_per_epoch(images, self.batch_size),
            batch_size=min(self.batch_size, images),
            lr=self.lr,
            optimizer="sgd",
            schedule="one-cycle",
            weight_decay=self.weight_decay,
        )
        return Plan(str(self), (Phase("train", chain, chain, self._objective, fit),), chain)

    def _objective(self, batch: Batch) -> Mapping[str, Tensor]:
        assert batch.labels is not None
        return {"cross-entropy": F.cross_entropy(batch.output, batch.labels, label_smoothing=self.label_smoothing)}
