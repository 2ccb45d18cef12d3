"""Two pairs of networks, few images, and batches made by hand, for the tests of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import netgraft.zoo  # noqa: F401  (registers the small models)
from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.models.creation import build_student
from netgraft.models.loading import load_teacher
from netgraft.plan import ObjectiveFunction, Plan, StepOutputs
from netgraft.progress import SilentReporter
from netgraft.training.runner import Runner

IMAGES = 4

SIDE = 32  # of the second pair's images

PAIRS = ("digits", "families")

PLAIN = ViewPolicy("plain", pool=0)
"""One view an image."""


def method(name: str, **settings: object) -> Any:
    """A method of the default preset with other hyper-parameters."""
    return choose(name, "default", Budget(IMAGES, 10), {key: str(value) for key, value in settings.items()}).method


def networks(pair: str) -> tuple[nn.Module, nn.Module]:
    """A teacher and a student: narrower twins with a front block to inherit, or a ResNet and a MobileNet."""
    if pair == "digits":
        teacher = load_teacher("digits_vgg7_bn")
        return teacher, build_student("digits_vgg7_bn_half", teacher=teacher, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = timm.create_model("cifar_resnet20", num_classes=7).eval()
        return teacher, timm.create_model("mobilenetv2_035", num_classes=7)


@lru_cache
def images_of(pair: str, count: int = IMAGES) -> list[Image.Image]:
    if pair == "digits":
        return open_data("digits").train.load_many(range(count))
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]


def digit_labels(count: int = IMAGES) -> list[int]:
    """Labels of the digits."""
    labels = open_data("digits").train.labels
    assert labels is not None
    return [labels[index] for index in range(count)]


def prepare_run(pair: str, chosen: Any, *, count: int = IMAGES, precision: str = "32", **options: Any) -> Distillation:
    """Prepare a run that checkpoints after every step if it has a folder."""
    if pair == "families":
        options["data_config"] = {
            "input_size": (3, SIDE, SIDE),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.3, 0.3, 0.3),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }
    options.setdefault("views", ViewPolicy("few", pad=1, pool=4 * count))
    options.setdefault("init", "random")
    options["runner"] = Runner(accelerator="cpu", precision=precision, checkpoint_seconds=0)
    return prepare(*networks(pair), images_of(pair, count), method=chosen, **options)


def pairing(inherit: str = "auto") -> Pairing:
    """The digits' pair: four blocks, whose cuts are 32/32, 64/32 and 128/64 wide and 4, 2 and 1 pixels high."""
    return cut_and_pair(*networks("digits"), PairingOptions("random", inherit), input_size=(1, 8, 8))


def one_cut() -> Pairing:
    """The digits' pair in two blocks, none of them inherited."""
    whole = pairing("none")
    return Pairing(whole.teacher.merge([1]), whole.student.merge([1]))


def objective_of(name: str, **settings: Any) -> ObjectiveFunction:
    """The objective of a method's last phase on the digits' pair."""
    plan: Plan = method(name, **settings).plan(pairing())
    return plan.phases[-1].objective


def with_observer(prepared: Distillation, observe: Callable[[int, StepOutputs], None]) -> Distillation:
    """Let every objective show its batches to ``observe(phase number, batch)`` first."""

    def wrap(number: int, objective: ObjectiveFunction) -> ObjectiveFunction:
        def wrapped(batch: StepOutputs) -> Mapping[str, Tensor]:
            observe(number, batch)
            return objective(batch)

        return wrapped

    phases = tuple(replace(p, objective=wrap(n, p.objective)) for n, p in enumerate(prepared.plan.phases))
    return replace(prepared, plan=replace(prepared.plan, phases=phases))


class Losses(SilentReporter):
    """Keeps the terms of each step, phase by phase."""

    def __init__(self) -> None:
        self.phases: list[list[Mapping[str, float]]] = []

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        self.phases.append([])

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        self.phases[-1].append(dict(terms))


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64, behind no network."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed).requires_grad_()


def values(terms: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in terms.items()}


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Row by row, the way it is defined."""
    return np.array([[np.exp(z / temperature) for z in row] / np.sum(np.exp(row / temperature)) for row in logits])


def cross_entropy(logits: np.ndarray, classes: Sequence[int]) -> float:
    return float(np.mean([-np.log(p[k]) for p, k in zip(softmax(logits), classes, strict=True)]))


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    """``tau^2`` times the mean over the batch of ``sum_k p_k log(p_k / q_k)``, ``p`` being the teacher's."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    rows = [sum(a * np.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    return temperature**2 * float(np.mean(rows))


def cross_entropy_slope(logits: np.ndarray, classes: list[int]) -> np.ndarray:
    """Of :func:`cross_entropy` at its logits."""
    slope = softmax(logits)
    slope[np.arange(len(logits)), classes] -= 1
    return slope / len(logits)


def slopes(terms: Any, tensor: Tensor) -> np.ndarray:
    """Gradient of the sum of all terms; zero where none depends on ``tensor``."""
    [slope] = torch.autograd.grad(sum(terms.values()), tensor, allow_unused=True)
    return np.zeros(tensor.shape) if slope is None else slope.numpy()


def layers(module: nn.Module) -> set[nn.Module]:
    """The modules without children."""
    return {layer for layer in module.modules() if not [*layer.children()]}
