"""The published task: CIFAR-10, VGG16 to its half, a few images a class."""

from __future__ import annotations

import copy
from functools import cache

from torch import nn

from netgraft.data.image_set import DataSource
from netgraft.data.sources import data_root, open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.models.creation import build_student
from netgraft.models.loading import load_teacher
from netgraft.training.precision import fastest
from netgraft.training.runner import Runner

TEACHER = "cifar_vgg16_bn"

WEIGHTS = "cifar_vgg16_bn.cifar10-jpeg.safetensors"


@cache
def source() -> DataSource:
    """CIFAR-10 as JPEG."""
    return open_data("cifar10-jpeg")


@cache
def _teacher() -> nn.Module:
    return load_teacher(TEACHER, weights=data_root() / WEIGHTS)


def teacher() -> nn.Module:
    """Return the shared teacher, a fresh copy."""
    return copy.deepcopy(_teacher())


def faster_precision() -> str:
    """``32`` or ``bf16``, as a run on the task would choose."""
    prepared = task()
    images = prepared.views.batch(range(32)).to(prepared.runner.fabric.device)
    return fastest(prepared.teacher.to(images.device).eval(), images)[0]


def task(
    *,
    shots: int = 10,
    method: str = "netgraft",
    preset: str = "reference",
    settings: dict[str, str] | None = None,
    views: ViewPolicy | None = None,
    init: str = "random",
    runner: Runner | None = None,
) -> Distillation:
    """Prepare the task; the student starts at random, as in the published code, unless ``init`` says otherwise.

    Subset and student come from the runner's seed.
    """
    runner = runner or Runner()
    labels = source().train_labels("so no subset can be drawn")
    subset = FewShotSubset.draw(labels, shots=shots, seed=runner.seed, dataset=source().name)
    stock = teacher()
    chosen = choose(method, preset, Budget(len(subset.indices), 10), settings)
    return prepare(
        stock,
        build_student("cifar_vgg16_bn_half", teacher=stock, seed=runner.seed),
        source().train.load_many(subset.indices),
        method=chosen.method,
        views=views or chosen.views,
        init=init,
        runner=runner,
    )
