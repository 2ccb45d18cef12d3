"""A student that shares nothing with its teacher, on as many samples as its time allows, up to twenty million.

VGG16 to MobileNetV2 on CIFAR-10 as JPEG, from ten images a class. Every sample is another view, of a 50th of an image
to all of it, and a part of another view is cut into each; temperature 8, batches of 512, Adam at 0.001 throughout, as
Asano and Saeed ("The Augmented Image Prior", ICLR 2023) train students from one picture. The last iterate is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.result_file import PartResult, Setting
from benchmarks.gpu.tasks import pictures, steps_done
from benchmarks.studies.cifar_task import source, teacher
from netgraft.data.image_set import DataSource, ImageSet
from netgraft.data.sources import open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.errors import InterruptedRunError
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import agreement, top1
from netgraft.methods.kd import KD
from netgraft.models.creation import build_student
from netgraft.models.loading import load_teacher
from netgraft.progress import SilentReporter
from netgraft.training.runner import Runner

SAMPLES, BATCH = 20_000_000, 512

TEMPERATURE = 8.0

SHOTS = 10

WIDE_CROPS = ViewPolicy(
    "wide crops", crop_scale=(0.02, 1.0), hflip=0.5, colour=0.4, cutmix=1.0, pool=None, arithmetic="8-bit"
)

EVALUATION = 0.15
"""Part of the time that is kept for the measuring."""


def measure(setting: Setting, result: PartResult) -> None:
    """Train until all samples were seen or the time is over, then measure."""
    samples, batch = (256, 8) if setting.tiny else (SAMPLES, BATCH)
    data = open_data(str(pictures(setting))) if setting.tiny else source()
    runner = Runner(accelerator=setting.device, precision="bf16")
    prepared = task(data, samples=samples, batch=batch, runner=runner, tiny=setting.tiny)
    folder, began = setting.work / "unrelated-student", time.monotonic()
    stop = stop_at(setting.ends_at - EVALUATION * setting.seconds_left())
    try:
        prepared.train(folder=folder, resume=True, stop=stop)
        finished = True
    except InterruptedRunError:
        finished = False
    seen = samples if finished else min(samples, batch * steps_done(folder))
    row = {"samples": seen, "of": samples, "seconds_of_training": round(time.monotonic() - began, 2)}
    result.put("student", {**row, **figures(prepared, data.test_or_all())}, dtype="bf16")
    if not finished:
        raise InterruptedRunError(f"{seen:,} of {samples:,} samples were seen")


def stop_at(moment: float) -> Callable[[], bool]:
    """Return what says from a moment on, by :func:`time.time`, that it is time to stop."""
    return lambda: time.time() >= moment


def task(data: DataSource, *, samples: int, batch: int, runner: Runner, tiny: bool) -> Distillation:
    """Prepare the training.

    Args:
        data: Few images are chosen from it.
        samples: Views in all, each seen once.
        batch: Views a step.
        runner: Trains.
        tiny: Take digits' models.
    """
    labels = data.train_labels("so no subset can be drawn")
    subset = FewShotSubset.draw(labels, shots=1 if tiny else SHOTS, seed=runner.seed, dataset=data.name)
    stock = load_teacher("digits_vgg7_bn") if tiny else teacher()
    name = "digits_vgg7_bn_half" if tiny else "cifar_mobilenetv2"
    return prepare(
        stock,
        build_student(name, teacher=stock, seed=runner.seed),
        data.train.load_many(subset.indices),
        method=KD(temperature=TEMPERATURE, steps=samples // batch, batch_size=batch, schedule="constant"),
        views=WIDE_CROPS,
        init="random",
        inherit="none",
        runner=runner,
    )


def figures(prepared: Distillation, test: ImageSet) -> dict[str, Any]:
    """Return what teacher and student, as they are now, are right on, and on how much they agree, in percent."""
    device = prepared.runner.fabric.device
    found = {}
    for name, model in (("teacher", prepared.teacher), ("student", prepared.model)):
        found[name] = predictions(model.eval().to(device), test, prepared.data_config, SilentReporter())
    labels = found["student"][1]
    accuracies = {f"{name}_top1": round(top1(logits, labels), 4) for name, (logits, _) in found.items()}
    return {**accuracies, "agreement": round(agreement(found["student"][0], found["teacher"][0]), 4)}
