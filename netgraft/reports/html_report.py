"""Finished runs -> one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from netgraft.errors import RequestError
from netgraft.files import write_text
from netgraft.reports.drawings import Plot, confidence_plot, front_plot, loss_plot
from netgraft.reports.finished_runs import FinishedRun, load_run

REPORT = "report.html"
"""In a run folder."""

SHOWN_CLASSES = 12
"""Those in which most images are answered differently."""


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write a report of one run, or of several side by side.

    Args:
        folders: Of finished runs of ``netgraft distill``.
        out: The file; it is replaced if it is a file.

    Raises:
        RequestError: A run is unfinished, damaged or of another kind, or the path can't be written to.
        RunError: The disk is full.
    """
    runs = [load_run(folder) for folder in folders]
    if not out.parent.is_dir():
        raise RequestError(f"expected a folder for {out.name}, got {out.parent}, which is none; make it first")
    if out.is_dir():
        raise RequestError(f"expected a file for the report, got the folder {out}; choose another --out")
    if not os.access(out.parent, os.W_OK):
        raise RequestError(f"expected a folder that can be written to, got {out.parent}; choose another --out")
    write_text(out, render(runs))


def render(runs: Sequence[FinishedRun]) -> str:
    """Return the HTML of a report of one run or more."""
    # what isn't known to be markup is text, whatever a class or a photograph is called
    environment = Environment(
        loader=PackageLoader("netgraft.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "millions": _millions, "megabytes": _megabytes}
    template = environment.get_template(REPORT)
    page = template.render(
        runs=runs,
        plots=[_curves(run) for run in runs],
        trust=[_trust(run) for run in runs],
        front=_front(runs),
        shown_classes=SHOWN_CLASSES,
    )
    return page.strip() + "\n"


def _trust(run: FinishedRun) -> Plot | None:
    """Draw what the student's confidence is worth; nothing where all answers are in one bin."""
    rows = run.by_confidence
    if len(rows) < 2:
        return None
    known = [row.right for row in rows if row.right is not None]
    figures = known if len(known) == len(rows) else [row.agreement for row in rows]
    said = "right" if known else "as the teacher's"
    return confidence_plot([row.confidence for row in rows], figures, figure=said)


def _curves(run: FinishedRun) -> list[Plot]:
    names = run.result.get("phases")
    known = names if isinstance(names, list) else []
    return [
        loss_plot(
            str(known[phase.number - 1]) if phase.number <= len(known) else f"phase {phase.number}",
            phase.steps,
            phase.terms,
        )
        for phase in run.losses
        if phase.terms
    ]


def _front(runs: Sequence[FinishedRun]) -> Plot | None:
    """Draw several runs with one teacher and one data set, where all have an agreement; else nothing."""
    agreements: list[Any] = [run.result["agreement"] for run in runs]
    pairs = {(run.result["data"], run.result["teacher_digest"]) for run in runs}
    if len(runs) < 2 or None in agreements or len(pairs) > 1:
        return None
    sizes = [run.result["macs"] for run in runs]
    title = "Agreement with the teacher over multiply-accumulates"
    return front_plot(title, sizes, agreements, x_label="million multiply-accumulates; agreement in %")


def _count(number: int) -> str:
    return f"{number:,}"


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.2f} MB"
