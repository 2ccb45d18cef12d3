"""The command ``netgraft methods``."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or show the hyper-parameters and presets of one."""
    from netgraft.methods.registry import METHODS, find

    from .output import emit, emit_table

    if name is None:
        rows = []
        for known in METHODS:
            about = find(known).about
            year = str(about.year or "-")
            rows.append([known, about.category, about.matches, about.phases, about.labels, about.article, year])
        emit_table(["method", "category", "matches", "phases", "labels", "article", "year"], rows)
        emit("labels: classes are real ones with --labeled, else the teacher's answers; methods can be joined: kd+at")
        return
    method = find(name)
    about = method.about
    emit(f"{name}: {about.summary}\narticle: {about.article}")
    emit(f"category: {about.category}; matches: {about.matches}; phases: {about.phases}; labels: {about.labels}")
    if not about.teacher:
        emit("the teacher doesn't teach; its answers stand for labels where there are none")
    emit("presets:\n" + "\n".join(f"  {preset}: {chosen.meaning}" for preset, chosen in method.presets.items()))
    _show_hyperparameters(method)


def _show_hyperparameters(method: type) -> None:
    from .options import hyperparameters
    from .output import emit_table

    rows = [[option.flag, option.kind, option.shown_default, option.meaning] for option in hyperparameters(method)]
    emit_table(["option", "type", "default", "meaning"], rows)
