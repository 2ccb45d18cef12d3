"""The same runs on the device and on the CPU: their figures side by side, and their students image by image."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from benchmarks.gpu.result_file import PartResult, Setting
from benchmarks.gpu.tasks import DISTILLED, Task, pictures
from netgraft.data.sources import open_data
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import agreement
from netgraft.models.students import load_student
from netgraft.progress import SilentReporter
from netgraft.training.runner import Runner

FIGURES = ("teacher_top1", "student_top1", "gap", "agreement", "start_top1", "steps", "computed_in")

SECONDS = ("seconds", "train_seconds", "frozen_seconds")


def measure(setting: Setting, result: PartResult) -> None:
    """Run each task on the device, then each on the CPU; then compare."""
    for where in ("device", "cpu"):
        for name, task in DISTILLED.items():
            entry = f"{name} on the {'device' if where == 'device' else 'CPU'}"
            if entry not in result.measured:
                device = setting.device if where == "device" else "cpu"
                # that of the device's run, so that both compute alike
                precision = result.measured.get(f"{name} on the device", {}).get("computed_in", "auto")
                done = task.run(setting, f"{name}-{where}", device, precision)
                row = {figure: done.get(figure) for figure in (*FIGURES, *SECONDS)}
                result.put(
                    entry, {**row, "device": done["device"], "machine": done["machine"]}, dtype=done["computed_in"]
                )
    for name, task in DISTILLED.items():
        result.put(f"{name}, both", compared(setting, name, task))


def compared(setting: Setting, name: str, task: Task) -> dict[str, Any]:
    """Return how far the students of both runs agree, and one of them with itself on both devices.

    Args:
        setting: Of the runs.
        name: Of the task.
        task: That both have carried out.

    Returns:
        In percent of the test images ``answers_alike``, of both students on the CPU, and ``same_student_alike``, of the
        device's student on both devices; ``largest_difference`` of its logits there, in parts of the largest logit.
    """
    students = {where: load_student(setting.work / f"{name}-{where}" / "student") for where in ("device", "cpu")}
    there = Runner(accelerator=setting.device).fabric.device
    data = dict(zip(arguments := task.arguments, arguments[1:], strict=False)).get("--data", "digits")
    images = open_data(str(pictures(setting)) if setting.tiny else data).test_or_all()

    def logits(student: nn.Module, device: torch.device) -> Tensor:
        model = copy.deepcopy(student).to(device)
        return predictions(model, images, resolve_model_data_config(student), SilentReporter())[0]

    cpu = torch.device("cpu")
    of_both = {where: logits(student, cpu) for where, student in students.items()}
    elsewhere = logits(students["device"], there)
    difference = (elsewhere - of_both["device"]).abs().max() / of_both["device"].abs().max()
    return {
        "images": len(images),
        "answers_alike": round(agreement(of_both["device"], of_both["cpu"]), 4),
        "same_student_alike": round(agreement(of_both["device"], elsewhere), 4),
        "largest_difference": float(f"{float(difference):.3g}"),
    }
