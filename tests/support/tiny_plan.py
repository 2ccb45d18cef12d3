"""A teacher, a student and a plan so small that a test runs them many times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from netgraft.data.view_policy import ViewPolicy
from netgraft.data.views import Views
from netgraft.plan import Phase, Plan, StepOutputs, TrainingSchedule
from netgraft.training.runner import Runner, Trained

IMAGES = 12

T = TypeVar("T")


@dataclass
class Notebook:
    """Writes down what it is told; knows of nothing else."""

    notes: list[str] = field(default_factory=list)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        pass

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        pass

    def phase_finished(self, seconds: float) -> None:
        pass

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        yield from items


def make_views(images: int = IMAGES, per_image: int | None = 4) -> Views:
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(images)]
    policy = ViewPolicy("shifted", pad=1, pool=None if per_image is None else images * per_image)
    return Views(
        pictures, policy, size=(1, 8, 8), mean=[0.5], std=[0.3], interpolation="bilinear", crop_pct=1.0, seed=0
    )


@dataclass
class Squared:
    """Mean squared distance of the logits; may do something else at one of its calls."""

    surprise_at: int = -1
    surprise: Callable[[], None] = lambda: None
    spoil: float = 1.0
    watch: Callable[[StepOutputs], None] = lambda batch: None
    calls: int = 0

    def __call__(self, batch: StepOutputs) -> Mapping[str, Tensor]:
        assert batch.target is not None
        self.watch(batch)
        loss = (batch.output - batch.target).square().sum(1).mean()
        if self.calls == self.surprise_at:
            self.surprise()
            loss = loss * self.spoil
        self.calls += 1
        return {"squared": loss}


def convolution(wide: int, narrow: int, norm: bool) -> nn.Sequential:
    # no bias in front of a norm: its gradient would be rounding noise, which Adam blows up to whole steps
    middle = nn.BatchNorm2d(narrow) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(wide, narrow, 3, padding=1, bias=not norm), middle, nn.ReLU())


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


@dataclass
class Case:
    """A teacher of three blocks, a narrower student of two, and a plan that grafts its first block, then both."""

    norm: bool = True
    dropout: float = 0.0
    schedules: tuple[TrainingSchedule, TrainingSchedule] = (
        TrainingSchedule(4, 8, 1e-2, 3e-2, lr_schedule="cosine"),
        TrainingSchedule(4, 8, 5e-3, 5e-3),
    )
    objective: Squared = field(default_factory=Squared)

    def __post_init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.teacher = nn.Sequential(convolution(1, 6, self.norm), convolution(6, 8, self.norm), head(8))
            for layer in self.teacher.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean = torch.rand(layer.num_features)
            self.enter, self.exit = nn.Conv2d(6, 3, 1, bias=False), nn.Conv2d(4, 8, 1, bias=False)
            self.block = nn.Sequential(convolution(3, 4, self.norm), nn.Dropout(self.dropout))
            self.head = head(8)
        scion = nn.Sequential(self.enter, self.block, self.exit)
        both = nn.Sequential(self.enter, self.block, self.exit, self.head)
        first = Phase(
            "graft",
            nn.Sequential(self.teacher[0], scion, self.teacher[2]),
            scion,
            self.objective,
            self.schedules[0],
            self.teacher,
            (self.enter, self.exit),
        )
        second = Phase(
            "join",
            nn.Sequential(self.teacher[0], both),
            both,
            self.objective,
            self.schedules[1],
            self.teacher,
            (self.exit,),
        )
        self.student = nn.Sequential(self.teacher[0], *both)
        self.plan = Plan("test", (first, second), self.student)

    def run(self, *, runner: Runner | None = None, views: Views | None = None, **options: object) -> Trained:
        runner = runner or Runner(accelerator="cpu", precision="32", checkpoint_seconds=0)
        return runner.run(self.plan, views or make_views(), fingerprint="f", **options)  # type: ignore[arg-type]


def rows(folder: Path, name: str = "metrics.jsonl") -> list[tuple[int, int]]:
    """Phase and step of each line of metrics; none without the file."""
    path = folder / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [(row["phase"], row["step"]) for row in map(json.loads, lines)]


LONG = (TrainingSchedule(12, 8, 1e-2, 3e-2, lr_schedule="cosine"), TrainingSchedule(23, 8, 5e-3, optimizer="sgd"))


SHARED = (
    TrainingSchedule(5, 4, 1e-2, 3e-2, optimizer="sgd", whole_epochs=True),
    TrainingSchedule(4, 5, 5e-3, optimizer="sgd"),
)


@dataclass
class IndependentPhases:
    """A teacher of three blocks and a head, and a plan that grafts each block in a phase that needs no other."""

    objective: Squared = field(default_factory=Squared)
    schedules: tuple[TrainingSchedule, ...] = (
        TrainingSchedule(12, 8, 1e-2),
        TrainingSchedule(23, 8, 1e-2, optimizer="sgd"),
        TrainingSchedule(11, 5, 5e-3, lr_schedule="cosine"),
    )

    def __post_init__(self) -> None:
        widths = ((1, 6), (6, 8), (8, 6))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.teacher = nn.Sequential(*(convolution(*sizes, norm=True) for sizes in widths), head(6))
            scions = [nn.Sequential(convolution(*sizes, norm=True), nn.Dropout(0.5)) for sizes in widths]
        phases = []
        for number, (scion, schedule) in enumerate(zip(scions, self.schedules, strict=True)):
            blocks = [*self.teacher[:number], scion, *self.teacher[number + 1 :]]
            phases.append(Phase(f"{number}", nn.Sequential(*blocks), scion, self.objective, schedule, self.teacher))
        self.student = nn.Sequential(*scions, self.teacher[3])
        self.plan = Plan("independent", tuple(phases), self.student)
