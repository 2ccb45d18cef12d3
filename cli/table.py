"""The command that shows results: ``netgraft table``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from .options import PATH

if TYPE_CHECKING:
    from netgraft.reports.summaries import Summary
    from netgraft.reports.tables import Metric, Table


Layout = Literal["long", "wide"]


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(["markdown", "latex", "csv"]),
    default="markdown",
    show_default=True,
    help="Of the table. CSV is unrounded and always long.",
)
@click.option(
    "--layout",
    type=click.Choice(["long", "wide"]),
    help="A line for each row and number of shots with all that is known, or a line for each row and a column for each "
    "number of shots. Wide by default where there are several.",
)
@click.option(
    "--metric", type=click.Choice(["gap", "top1", "agreement"]), help="What a wide table shows; the gap by default."
)
@click.option(
    "--against",
    metavar="ROW",
    help="Show by how much that figure of each row differs from ROW's, run by run on the same subset and seed.",
)
@click.option("--plot", type=PATH, metavar="FILE", help="Also draw a picture for each pair: FILE.png or FILE.svg.")
def table(
    folders: tuple[Path, ...],
    form: str,
    layout: Layout | None,
    metric: Metric | None,
    against: str | None,
    plot: Path | None,
) -> None:
    """Print the results below DIR as one table: mean and standard deviation over subsets and seeds."""
    from netgraft.experiments.results import load
    from netgraft.reports.formats import FORMATS
    from netgraft.reports.summaries import summarize

    from .output import emit

    result_folders = load(folders)
    summaries = summarize(result_folders)
    title = " / ".join(dict.fromkeys(each.experiment.title for each in result_folders if each.experiment))
    text = FORMATS[form](_lay_out(summaries, title, form, layout, metric, against))
    if plot is not None:
        from netgraft.reports.charts import save

        for path in save(summaries, plot):
            click.echo(f"drawn: {path}", err=True)
    emit(text)


def _lay_out(
    summaries: Sequence[Summary],
    title: str,
    form: str,
    layout: Layout | None,
    metric: Metric | None,
    against: str | None,
) -> Table:
    """Choose the layout that was asked for, or that suits what there is."""
    from netgraft.errors import RequestError
    from netgraft.reports.tables import complete_table, long_table, paired_table, wide_table

    if form == "csv":
        if layout == "wide" or metric is not None or against is not None:
            raise RequestError("CSV has all figures, always long; leave out --layout wide, --metric and --against")
        return complete_table(summaries, title)
    if layout == "long" and (metric is not None or against is not None):
        raise RequestError("a long table has all figures; leave --metric and --against out, or give --layout wide")
    if against is not None:
        return paired_table(summaries, against, metric or "gap", title)
    several = len({summary.size for summary in summaries}) > 1
    if layout == "wide" or (layout is None and (several or metric is not None)):
        return wide_table(summaries, metric or "gap", title)
    return long_table(summaries, title)
