"""A teacher for CIFAR-100, by ``netgraft train``."""

from __future__ import annotations

from benchmarks.gpu.result_file import PartResult, Setting
from benchmarks.gpu.tasks import TEACHER_OF_CIFAR100, steps_done
from netgraft.errors import InterruptedRunError

FIGURES = ("top1", "test_images", "steps", "train_seconds", "seconds", "parameters", "weights_digest")

PRECISION = "bf16"


def measure(setting: Setting, result: PartResult) -> None:
    """Train it; where the time ends before, say how far it came."""
    try:
        done = TEACHER_OF_CIFAR100.run(setting, "cifar100-teacher", setting.device, PRECISION)
    except InterruptedRunError:
        result.put("teacher", {"top1": None, "steps": steps_done(setting.work / "cifar100-teacher")}, dtype=PRECISION)
        raise
    result.put("teacher", {figure: done[figure] for figure in FIGURES}, dtype=PRECISION)
