"""Runs that are killed and go on: they must come to the student of a run that nobody killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.attacks.commands import Ended, carry_out
from benchmarks.attacks.file_events import killing, listed, noting

COMMON = ("--shots", "1", "--views", "plain", "--precision", "32", "--device", "cpu", "--checkpoint-seconds", "0")

NAMED = ("--student", "digits_vgg7_bn_half")

_STEPS: Mapping[str, tuple[str, ...]] = {
    "netgraft": ("--block-steps", "2", "--join-steps", "2"),
    "fitnets": ("--hint-steps", "2", "--steps", "2"),
    "ft": ("--paraphraser-steps", "2", "--steps", "2"),
    "ab": ("--ab-steps", "2", "--steps", "2"),
    "fsp": ("--fsp-steps", "2", "--steps", "2"),
    "ban": ("--generations", "2", "--steps", "4"),
}

_METHODS = (
    *("netgraft", "kd", "fitnets", "at", "at-gradient", "nst", "ft", "ab", "fsp", "rkd", "ban", "dml", "one", "byot"),
    *("none", "kd+at"),
)

RECIPES: Mapping[str, tuple[str, ...]] = {
    **{name: (*NAMED, "--method", name, *_STEPS.get(name, ("--steps", "3"))) for name in _METHODS if name != "none"},
    "none": (*NAMED, "--method", "none"),
    "supervised": (*NAMED, "--method", "supervised", "--labeled", "--steps", "3"),
    "derived": ("--keep", "macs=0.3", "--method", "kd", "--steps", "3"),
    "best on test": (*NAMED, "--method", "kd", "--steps", "4", "--select", "best-on-test", "--looks", "2"),
}
"""What is tried -> its arguments: every method, a derived student, one that is chosen on the test set."""


def command(recipe: str, folder: Path, *more: str) -> list[str]:
    """Return the arguments of a run in ``folder / "run"``, which keeps its teacher's answers beside that."""
    where = ("--out", str(folder / "run"), "--keep-answers", str(folder / "answers"), "--quiet")
    return ["distill", *COMMON, *RECIPES[recipe], *where, *more]


@dataclass(frozen=True)
class Whole:
    """A run that nobody cut off.

    Attributes:
        recipe: Of :data:`RECIPES`.
        digest: Of its student.
        metrics: Lines of its log.
        files: All that it left.
        events: In which it touched its files.
    """

    recipe: str
    digest: str
    metrics: str
    files: Sequence[str]
    events: Sequence[str]


def whole(recipe: str, folder: Path) -> Whole:
    """Carry out a run in a folder that is removed afterwards.

    Raises:
        RuntimeError: It failed.
    """
    log = folder.with_name(f"{folder.name}.events")
    ended = carry_out(command(recipe, folder), noting(folder, log))
    if ended.code:
        raise RuntimeError(f"{recipe} failed without being attacked: {ended}")
    done = Whole(recipe, digest_of(folder), _metrics(folder), _left(folder), listed(log))
    shutil.rmtree(folder)
    log.unlink()
    return done


def killed_at(run: Whole, at: int, folder: Path) -> str:
    """Kill a run in front of one of its events, let it go on, and say what is wrong then; nothing if all is well.

    Args:
        run: As it is when nobody kills it.
        at: Number of the event.
        folder: Is removed afterwards.
    """
    ended = carry_out(command(run.recipe, folder), killing(folder, at))
    if ended.code != -9:
        return f"expected it to be killed in front of {run.events[at]}, got {ended}"
    wrong = gone_on(run, folder, carry_out(command(run.recipe, folder, "--resume")))
    shutil.rmtree(folder)
    return wrong


def gone_on(run: Whole, folder: Path, ended: Ended) -> str:
    """Say in what a run that has gone on differs from one that nobody cut off; nothing if in nothing."""
    if ended.code:
        return f"expected it to go on, got {ended}"
    for what, found, expected in (
        ("student", digest_of(folder), run.digest),
        ("metrics", _metrics(folder), run.metrics),
        ("files", _left(folder), run.files),
    ):
        if found != expected:
            return f"expected {what} {expected!r}, got {found!r}"
    return ""


def digest_of(folder: Path) -> str:
    """Return the digest of the student that the result names."""
    result: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text())
    return str(result["student_digest"])


def _metrics(folder: Path) -> str:
    path = folder / "run" / "metrics.jsonl"
    return path.read_text() if path.exists() else ""


def _left(folder: Path) -> list[str]:
    """Return the names of all files but those that stay, for a day, in a folder that other runs may write into now."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return [name for name in names if not (name.startswith("answers/.") and name.endswith(".tmp"))]
