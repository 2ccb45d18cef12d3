"""A finished run -> the model card of its student, with nothing in it that lies on one machine only."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netgraft.data.sources import is_public
from netgraft.files import write_text
from netgraft.jobs.export import license_of
from netgraft.jobs.options import DistillOptions
from netgraft.models.card import CARD, OWN_IMAGES, OWN_MODEL, CardFacts, base_model, card
from netgraft.models.loading import lies_on_disk
from netgraft.models.students import IN_A_RUN
from netgraft.options import declared
from netgraft.reports.finished_runs import FinishedRun

DATA, MODELS = ("data", "eval_data"), ("teacher", "student")
"""Options that name something, or are paths."""


def write_card(run: FinishedRun) -> None:
    """Write the card into the run's student folder, unless there is one.

    Raises:
        RunError: It can't be written.
    """
    path = run.folder / IN_A_RUN[0] / CARD
    if not path.exists():
        write_text(path, model_card(run))


def model_card(run: FinishedRun) -> str:
    """Return the card."""
    result = run.result
    own = private_values(result)
    teacher, student = result["teacher"], result["student"]
    if teacher in own.values():
        teacher, student = OWN_MODEL, student.replace(teacher, OWN_MODEL)
    if student in own.values():
        student = OWN_MODEL
    public = "data" not in own and is_public(result["data"])
    return card(
        CardFacts(
            student=student,
            opener="timm" if result["opens_with_timm"] else "netgraft",
            parameters=result["parameters"],
            macs=result["macs"],
            teacher=teacher,
            teacher_parameters=result["teacher_parameters"],
            teacher_macs=result["teacher_macs"],
            base_model=None if {"teacher", "teacher_weights"} & own.keys() else base_model(teacher),
            license=license_of(run.folder),
            data=result["data"] if public else OWN_IMAGES,
            dataset=result["data"] if public else None,
            images=result["images"],
            labels=result["labels"],
            teacher_top1=result["teacher_top1"],
            student_top1=result["student_top1"],
            agreement=result["agreement"],
            measured_on=result.get("test_images") or result.get("held_out_images"),
            selection=result["selection"],
            selected_on=result.get("selected_on"),
            command=_command(run, own),
        )
    )


def private_values(result: Mapping[str, Any]) -> dict[str, str]:
    """Return what was asked for that lies on the disk of whoever ran it: paths, by the names of their options."""
    options = result.get("options")
    # of runs that didn't note what was asked for, what they say
    of_result = ("data", "teacher") if isinstance(options, dict) else ("data", *MODELS)
    asked = {name: result[name] for name in of_result} | (options if isinstance(options, dict) else {})
    known = declared(DistillOptions)
    return {
        name: value
        for name, value in asked.items()
        if isinstance(value, str)
        and (
            (name in known and known[name].type is Path)
            or (name in DATA and not is_public(value))
            or (name in MODELS and lies_on_disk(value))
            or (name == "student_weights" and value != "pretrained")
        )
    }


def _command(run: FinishedRun, own: Mapping[str, str]) -> str | None:
    """Return the command with the name of its option, in capitals, in the place of each path."""
    if run.command is None:
        return None
    flags = {option.flag: name.upper() for name, option in declared(DistillOptions).items() if name in own}
    words = shlex.split(run.command)
    return " ".join(
        flags[before] if before in flags else shlex.quote(word)
        for before, word in zip(["", *words], words, strict=False)
    )
