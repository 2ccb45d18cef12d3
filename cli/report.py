"""The command ``netgraft report``, and the report that ``distill`` leaves."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, metavar="FILE.html", help="The file; a report there is replaced.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write what came of runs as one HTML file: a page to show, or several runs side by side.

    RUN is the folder of a finished run of netgraft distill, which holds a report of its own: report.html.
    """
    from netgraft.reports.html_report import write_report

    from .output import emit

    write_report(runs, out)
    emit(f"written: {out}")


def add_report(folder: Path) -> None:
    """Leave a report in a finished run's folder, and a card beside its student; a run stays what it is without them."""
    from netgraft.reports.finished_runs import load_run
    from netgraft.reports.html_report import REPORT, write_report
    from netgraft.reports.model_card import write_card

    try:
        if not (folder / REPORT).exists():
            write_report([folder], folder / REPORT)
        write_card(load_run(folder))
    except Exception as error:  # the run is finished and saved, whatever this was
        said = " ".join(f"{type(error).__name__}: {error}".splitlines())
        click.echo(f"netgraft: warning: the run is finished, but there is no report of it ({said})", err=True)
