"""The command ``netgraft suggest``: which smaller models pair with a teacher."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .options import DeclaredCommand, flag, given, job_options

if TYPE_CHECKING:
    from netgraft.jobs.suggest import Size, Suggestions

MEANINGS = {
    "solve": "weights in closed form from the teacher's, then 1,000 steps",
    "slice": "weights copied or cut out of the teacher's",
    "random": "new weights, which need many steps; better with --student-weights",
}


@click.command(cls=DeclaredCommand, declared=lambda: job_options("image_size", "num_classes"))
@click.argument("teacher")
@click.option("--most", type=click.IntRange(1, 50), default=10, show_default=True, help="So many models at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@flag("--quiet", "Say nothing but the answer.")
def suggest(teacher: str, most: int, as_json: bool, quiet: bool | None, **options: Any) -> None:
    """Suggest smaller models for TEACHER: of its family, and well-known small ones that pair with it.

    TEACHER is a timm model, torchvision:NAME, or a folder that a run left. Nothing is downloaded. A student of any
    size needs no name: netgraft distill --keep macs=0.5 derives it.
    """
    from netgraft.jobs.suggest import suggest as look

    from .output import emit_json
    from .progress_display import open_reporter

    with open_reporter(sys.stderr, quiet=bool(quiet)) as reporter:
        found = look(teacher, most=most, reporter=reporter, **given(options))
    if as_json:
        emit_json(_content(found))
    else:
        _show(found)


def _show(found: Suggestions) -> None:
    from .output import count, emit, emit_table

    def costs(size: Size) -> list[str]:
        return [f"{size.parameters / 1e6:,.2f} M", f"{size.macs / 1e6:,.1f} M"]

    rows = [
        [each.student, *costs(each.size), f"{each.size.macs / found.size.macs:.0%}", each.start, _yes(each.pretrained)]
        for each in found.students
    ]
    rows.insert(0, [found.teacher, *costs(found.size), "100%", "", ""])
    sizes = "x".join(map(str, found.input_size))
    title = f"smaller models for {found.teacher} at {sizes}, {count(found.classes)} classes"
    emit_table(["model", "parameters", "MACs", "of them", "starts", "weights"], rows, title=title)
    starts = {each.start for each in found.students}
    emit("\n".join(f"{start}: {meaning}" for start, meaning in MEANINGS.items() if start in starts) or "none was found")
    if any(each.pretrained for each in found.students):
        emit("weights: there are some that know something (--student-weights pretrained)")
    emit("of any size, from the teacher itself: netgraft distill --keep macs=0.5")


def _yes(fact: bool) -> str:
    return "yes" if fact else "-"


def _content(found: Suggestions) -> dict[str, Any]:
    students = [
        {"student": each.student, **asdict(each.size), **{name: getattr(each, name) for name in _FACTS}}
        for each in found.students
    ]
    return {
        "teacher": found.teacher,
        **asdict(found.size),
        "input_size": list(found.input_size),
        "classes": found.classes,
        "students": students,
    }


_FACTS = ("start", "blocks", "inherited", "pretrained")
