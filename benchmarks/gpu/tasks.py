"""What the parts train, as requests to the command line; in a rehearsal the same with hardly any pictures and steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.boxes import INTERRUPTED
from benchmarks.gpu.result_file import Setting
from benchmarks.studies.cifar_task import TEACHER, WEIGHTS
from netgraft.data.sources import open_data
from netgraft.errors import InterruptedRunError, RunError


@dataclass(frozen=True)
class Task:
    """A run of the command line.

    Attributes:
        arguments: Of ``netgraft``.
        rehearsal: The same in a rehearsal; ``{pictures}`` stands for a small folder.
    """

    arguments: Sequence[str]
    rehearsal: Sequence[str]

    def run(self, setting: Setting, name: str, device: str, precision: str) -> dict[str, Any]:
        """Carry it out in this process, or go on with what an earlier try left; return its result file.

        Args:
            setting: Says whether this is a rehearsal.
            name: Of the run folder.
            device: Where it computes.
            precision: ``auto``, ``32`` or ``bf16``.

        Raises:
            RunError: It failed; it has said why.
            InterruptedRunError: It was asked to stop, and has saved itself.
        """
        from netgraft.cli.main import run_alone

        folder = setting.work / name
        given = self.rehearsal if setting.tiny else self.arguments
        asked = [str(pictures(setting)) if argument == "{pictures}" else argument for argument in given]
        where = ["--device", device, "--precision", precision, "--out", str(folder)]
        code = run_alone([*asked, *where, "--resume", "--quiet"])
        if code == INTERRUPTED:
            raise InterruptedRunError(f"{name} was asked to stop")
        if code != 0:
            raise RunError(f"netgraft {' '.join(asked)} ended with exit code {code}; it has said why")
        return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


_FEW = ("--shots", "2", "--views", "plain", "--steps", "2")

DISTILLED: Mapping[str, Task] = {
    "digits": Task(("distill", "--shots", "10"), ("distill", "--eval-data", "{pictures}", *_FEW)),
    "vgg": Task(
        (
            *("distill", "--data", "cifar10-jpeg", "--teacher", TEACHER, "--teacher-weights", WEIGHTS),
            *("--student", "cifar_vgg16_bn_half", "--shots", "10"),
        ),
        (
            *("distill", "--data", "{pictures}", "--teacher", "digits_vgg7_bn"),
            *("--student", "digits_vgg7_bn_half", *_FEW),
        ),
    ),
}
"""The default run, and the published task: VGG16 to its half on CIFAR-10 as JPEG."""

TEACHER_OF_CIFAR100 = Task(
    ("train", "cifar_resnet20", "--data", "cifar100-q95", "--epochs", "60", "--lr", "0.1"),
    ("train", "digits_vgg7_bn_half", "--data", "{pictures}", "--epochs", "2"),
)
"""As that in ``benchmarks/teachers`` was trained."""


def steps_done(folder: Path) -> int:
    """Return how many steps a run's metrics tell of; 0 where it has none yet.

    Args:
        folder: Of a run of one phase.
    """
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def pictures(setting: Setting) -> Path:
    """Return a folder of 40 digits in class folders, half of them for testing; made if it isn't there."""
    folder, source = setting.work / "pictures", open_data("digits")
    for part, images in (("train", source.train), ("test", source.test)):
        assert images is not None, "the digits have both"
        labels = images.known_labels("so they have no folders")
        for number in (n for digit in range(10) for n in [i for i, label in enumerate(labels) if label == digit][:2]):
            path = folder / part / str(labels[number]) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.load(number).save(path)
    return folder
