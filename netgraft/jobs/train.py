"""``netgraft train``: a teacher for people who have none, from labelled images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.data.views import Views
from netgraft.errors import RequestError
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import macs, top1
from netgraft.jobs.job import RunOptions, _digest, claim, conclude
from netgraft.methods.hyperparameters import hyperparameter
from netgraft.models.creation import build_model
from netgraft.models.students import save_student
from netgraft.modules import eval_mode, parameters, state_digest
from netgraft.plan import Phase, Plan, StepOutputs, TrainingSchedule, steps_per_epoch
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.splitting.split import logits_of


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
        fit = TrainingSchedule(
            steps=self.epochs * steps_per_epoch(images, self.batch_size),
            batch_size=min(self.batch_size, images),
            lr=self.lr,
            optimizer="sgd",
            schedule="one-cycle",
            weight_decay=self.weight_decay,
        )
        return Plan(str(self), (Phase("train", chain, chain, self._objective, fit),), chain)

    def _objective(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        assert batch.labels is not None
        return {"cross-entropy": F.cross_entropy(batch.output, batch.labels, label_smoothing=self.label_smoothing)}


@dataclass(frozen=True)
class TrainJob(RunOptions):
    """``netgraft train``: a teacher, from labelled images.

    Attributes:
        model: A timm name.
        data: Name or path; see :func:`netgraft.data.sources.open_data`.
        recipe: Hyper-parameters.
    """

    model: str
    data: str
    recipe: SupervisedTraining = field(default_factory=SupervisedTraining)

    def run(self, reporter: ProgressReporter | None = None, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Train, evaluate, save; return what ``result.json`` holds. Raises like :meth:`DistillJob.run`."""
        started = time.monotonic()
        reporter = reporter or SilentReporter()
        source = open_data(self.data, root=self.data_root, download=self.download)
        labels = source.train_labels("and a teacher is trained from labelled images; sort them into one a class")
        model = build_model(self.model, seed=self.seed, image_size=self.image_size, num_classes=source.train.classes)
        data_config = resolve_model_data_config(model)
        with eval_mode(model):
            logits_of(model, torch.zeros(1, *data_config["input_size"]))
        runner = replace(self.runner, seed=self.seed)
        count = len(source.train)
        plan = self.recipe.plan(model, count)
        policy = self.recipe.views(count, data_config["input_size"], source.hflip)
        config = {
            "data": f"{source.name} ({count} images)",
            "model": self.model,
            "input_size": list(data_config["input_size"]),
            "recipe": str(self.recipe),
            "views": str(policy),
            "seed": self.seed,
            "precision": runner.precision,
            "devices": runner.devices,
        }
        fingerprint = _digest({**config, "plan": str(plan), "weights": state_digest(model)})
        config["fingerprint"] = fingerprint
        name = f"{source.name}-{self.model}-train-seed{self.seed}".replace("/", "_")
        with claim(runner, self.out, name, config, resume=self.resume) as (out, finished):
            if not runner.fabric.is_global_zero:
                reporter = SilentReporter()
            if finished is not None:
                reporter.note(f"{out} is finished; nothing was left to do")
                return finished
            reporter.note(str(plan))
            images = source.train.load_many(range(count))
            views = Views.configured(images, policy, data_config, seed=self.seed, labels=labels)
            trained = runner.run(
                plan, views, folder=out, fingerprint=fingerprint, resume=self.resume, reporter=reporter, stop=stop
            )

            def finish() -> dict[str, Any]:
                save_student(out / "model", model.eval(), model, cuts=(), data_config=data_config)
                result: dict[str, Any] = {
                    **config,
                    "steps": trained.steps,
                    "train_seconds": round(trained.seconds, 2),
                    "parameters": parameters(model),
                    "macs": macs(model, data_config["input_size"]),
                    "weights_digest": state_digest(model),
                    "top1": None,
                }
                if source.test is not None:
                    logits, labels = predictions(model, source.test, data_config, reporter)
                    result["top1"] = round(top1(logits, labels), 4)
                    result["test_images"] = len(source.test)
                return result

            return conclude(runner, out, started, finish)
