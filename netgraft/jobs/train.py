"""``netgraft train``: a teacher for people who have none, from labelled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.data.image_set import DataSource, ImageSet
from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.data.views import Views
from netgraft.errors import RequestError
from netgraft.evaluation.class_matching import match_classes
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import macs, top1
from netgraft.jobs.job import Job
from netgraft.methods.hyperparameters import check_choices, hyperparameter
from netgraft.models.creation import build_model, describe_labels
from netgraft.models.students import save_student
from netgraft.modules import eval_mode, parameters, state_digest
from netgraft.options import check_held, held, recorded, required, shown
from netgraft.plan import Phase, Plan, StepOutputs, TrainingSchedule, steps_per_epoch
from netgraft.progress import ProgressReporter
from netgraft.splitting.split import logits_of
from netgraft.training.identity import VERSION, fingerprint
from netgraft.training.runner import Runner, Trained

OPTIMIZERS = ("sgd", "adamw")

MOST_EPOCHS = 100_000


@dataclass(frozen=True)
class SupervisedTraining:
    """One learning-rate cycle on labels (Smith 2018): SGD with Nesterov momentum (He et al. 2016), or AdamW."""

    epochs: int = hyperparameter(
        30, "how often each image is seen, each time through another view", minimum=1, maximum=MOST_EPOCHS
    )
    batch_size: int = hyperparameter(128, "views a step", minimum=1)
    optimizer: str = hyperparameter(
        "sgd", "with Nesterov momentum 0.9; or adamw, for transformers, with a rate near 0.001", choices=OPTIMIZERS
    )
    lr: float = hyperparameter(0.1, "peak rate", minimum=0)
    weight_decay: float = hyperparameter(
        5e-4, "L2 penalty on convolutions and linear layers; of adamw near 0.05", minimum=0
    )
    label_smoothing: float = hyperparameter(0.0, "probability mass spread over the other classes", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        check_held(self)
        check_choices(self, "optimizer")

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
        schedule = TrainingSchedule(
            steps=self.epochs * steps_per_epoch(images, self.batch_size),
            batch_size=min(self.batch_size, images),
            lr=self.lr,
            optimizer=self.optimizer,
            lr_schedule="one-cycle",
            weight_decay=self.weight_decay,
        )
        phase = Phase("train", chain, chain, self._objective, schedule, in_words="train the whole model")
        return Plan(str(self), (phase,), chain)

    def _objective(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        assert batch.labels is not None
        return {"cross-entropy": F.cross_entropy(batch.output, batch.labels, label_smoothing=self.label_smoothing)}


@dataclass(frozen=True)
class TrainJob(Job):
    """``netgraft train``: a teacher, from labelled images."""

    command: ClassVar[str] = "train"

    model: str = required("A timm name.")
    data: str = required("Name or path of labelled images.", scope="pair", section="data")
    recipe: SupervisedTraining = field(default_factory=SupervisedTraining)

    @property
    def hyperparameters(self) -> Mapping[str, str]:
        """Those that differ from their defaults."""
        default = held(SupervisedTraining())
        return {name: shown(value) for name, value in held(self.recipe).items() if value != default[name]}

    def prepare(self) -> PreparedTraining:
        """Open the images, make the model and its plan. Raises like :meth:`Job.prepare`."""
        source = open_data(self.data, root=self.data_root, download=self.download, skip_broken=self.skip_broken)
        labels = source.train_labels("and a teacher is trained from labelled images; sort them into one a class")
        model = build_model(self.model, seed=self.seed, image_size=self.image_size, num_classes=source.train.classes)
        class_names = source.train.class_names
        describe_labels(model, {} if class_names is None else {"label_names": list(class_names)})
        data_config = resolve_model_data_config(model)
        with eval_mode(model):
            logits_of(model, torch.zeros(1, *data_config["input_size"]))
        count = len(source.train)
        source = replace(source, test=self._test(source, model))
        policy = self.recipe.views(count, data_config["input_size"], source.hflip)
        return PreparedTraining(
            job=self,
            source=source,
            labels=labels,
            model=model,
            data_config=data_config,
            plan=self.recipe.plan(model, count),
            policy=policy,
            runner=self._runner(),
            weights_digest=state_digest(model),
        )

    def _test(self, source: DataSource, model: nn.Module) -> ImageSet | None:
        """Return the images that the model is measured on, with its classes as labels; None where there are none."""
        if self.eval_data is None:
            return source.test
        images = open_data(self.eval_data, root=self.data_root, download=self.download).test_or_all()
        if images.labels is None:
            raise RequestError(f"{images.name} has no class folders, so it measures no accuracy; leave --eval-data out")
        return match_classes(images, model, name=self.model).images


@dataclass(eq=False)
class PreparedTraining:
    """A training that can begin.

    Attributes:
        job: What was asked for.
        source: Images.
        labels: Class of each training image.
        model: Trained in place.
        data_config: Preprocessing in timm's words.
        plan: What will be trained.
        policy: How views are made.
        runner: Trains.
        weights_digest: Of the model as it starts.
    """

    job: TrainJob
    source: DataSource
    labels: Sequence[int]
    model: nn.Module
    data_config: dict[str, Any]
    plan: Plan
    policy: ViewPolicy
    runner: Runner
    weights_digest: str
    _trained: Trained | None = None

    @property
    def timed_model(self) -> nn.Module:
        """The one that is trained."""
        return self.model

    @property
    def name(self) -> str:
        """Of the folder under ``runs/``, where none is asked for."""
        return f"{self.source.name}-{self.job.model}-train-seed{self.job.seed}".replace("/", "_")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was asked for, with a fingerprint of everything that decides the result."""
        asked = {
            "data": f"{self.source.name} ({len(self.source.train)} images)",
            "model": self.job.model,
            "input_size": list(self.data_config["input_size"]),
            **recorded(self.job),
        }
        identity = fingerprint(
            **asked,
            recipe=self.job.recipe,
            views=self.policy,
            phases=[phase.identity() for phase in self.plan.phases],
            weights=self.weights_digest,
        )
        return {
            "fingerprint": identity,
            "identity_version": VERSION,
            **asked,
            "recipe": str(self.job.recipe),
            "views": str(self.policy),
        }

    @property
    def notes(self) -> Sequence[str]:
        """What is trained, on which images and how."""
        channels, height, width = self.data_config["input_size"]
        count, recipe = len(self.source.train), self.job.recipe
        return [
            f"training {self.job.model} on {count:,} images of {self.source.name}, {height} x {width} pixels in "
            f"{channels} {'channels' if channels > 1 else 'channel'}",
            f"{recipe.epochs:,} epochs with {recipe.optimizer}",
            *self.plan.lines(),
        ]

    def begin(self, folder: Path) -> None:
        """Nothing is known before that the configuration doesn't say."""

    def train(self, folder: Path, *, resume: bool, reporter: ProgressReporter, stop: Callable[[], bool] | None) -> None:
        """Make views of all images and train."""
        images = self.source.train.load_many(range(len(self.source.train)))
        views = Views.configured(images, self.policy, self.data_config, seed=self.job.seed, labels=self.labels)
        self._trained = self.runner.run(
            self.plan,
            views,
            folder=folder,
            fingerprint=self.config["fingerprint"],
            resume=resume,
            reporter=reporter,
            stop=stop,
        )

    def finish(self, folder: Path, reporter: ProgressReporter) -> dict[str, Any]:
        """Save the model and measure it on the test images, if there are any."""
        assert self._trained is not None, "train() comes first"
        save_student(folder / "model", self.model.eval(), self.model, cuts=(), data_config=self.data_config)
        result: dict[str, Any] = {
            "steps": self._trained.steps,
            "train_seconds": round(self._trained.seconds, 2),
            "parameters": parameters(self.model),
            "macs": macs(self.model, self.data_config["input_size"]),
            "weights_digest": state_digest(self.model),
            "top1": None,
        }
        if self.source.test is not None:
            logits, labels = predictions(self.model, self.source.test, self.data_config, reporter)
            result["top1"] = round(top1(logits, labels), 4)
            result["test_images"] = len(self.source.test)
        return result
