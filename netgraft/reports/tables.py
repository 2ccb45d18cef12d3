"""Summaries laid out as one table, which knows nothing of the format that it will be printed in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from netgraft.errors import RequestError
from netgraft.reports.summaries import Size, Statistic, Summary

Metric = Literal["gap", "top1", "agreement"]


METRICS: dict[Metric, str] = {
    "gap": "Gap to the teacher in points of top-1",
    "top1": "Top-1 in percent",
    "agreement": "Agreement with the teacher's answers in percent",
}


@dataclass(frozen=True)
class Cited:
    """Name of a published row.

    Attributes:
        name: As the experiment gives it.
        footnote: Number of the footnote that says where it stands, counted from one.
    """

    name: str
    footnote: int


@dataclass(frozen=True)
class PValue:
    """How probable it is that chance alone makes differences as large as these.

    Attributes:
        probability: Between 0 and 1.
    """

    probability: float


@dataclass(frozen=True)
class Interval:
    """Where a mean lies, as far as its runs tell.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


Value = str | int | float | Statistic | Cited | PValue | Interval | None


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: Name for programs.
        heading: Name for people.
        kind: What its values are, where there are any.
    """

    key: str
    heading: str
    kind: Literal["text", "number", "statistic", "interval"] = "text"


@dataclass(frozen=True)
class Line:
    """A line.

    Attributes:
        values: One for each column; None where nothing is known.
        block: Number of the pair that it belongs to.
    """

    values: tuple[Value, ...]
    block: int


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: For people; may be empty.
        columns: From left to right.
        lines: From top to bottom.
        footnotes: On published lines.
        notes: What holds for all lines or for some, one sentence or more each.
    """

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def without(self, keys: Collection[str]) -> Table:
        """Leave columns out."""
        kept = [number for number, column in enumerate(self.columns) if column.key not in keys]
        return replace(
            self,
            columns=tuple(self.columns[number] for number in kept),
            lines=tuple(Line(tuple(line.values[number] for number in kept), line.block) for line in self.lines),
        )


IDENTITY: tuple[tuple[Column, Callable[[Summary], Value]], ...] = (
    (Column("data", "data"), lambda summary: summary.pair.data),
    (Column("teacher", "teacher"), lambda summary: summary.pair.teacher),
    (Column("student", "student"), lambda summary: summary.pair.student),
    (Column("teacher_digest", "teacher's weights"), lambda summary: summary.pair.digest[:12]),
)


FIGURES: tuple[tuple[Column, Callable[[Summary], Value]], ...] = (
    (Column("shots", "shots", "number"), lambda summary: summary.size.number if summary.size.unit == "shots" else None),
    (Column("images", "images", "number"), lambda summary: summary.images),
    (Column("gap", "gap to the teacher", "statistic"), lambda summary: summary.gap),
    (Column("top1", "top-1", "statistic"), lambda summary: summary.top1),
    (Column("agreement", "agreement", "statistic"), lambda summary: summary.agreement),
    (Column("ensemble_top1", "ensemble's top-1", "statistic"), lambda summary: summary.ensemble_top1),
    (Column("start_gap", "gap before training", "statistic"), lambda summary: summary.start_gap),
    (Column("n", "n", "number"), lambda summary: summary.n),
    (Column("steps", "steps", "number"), lambda summary: summary.steps),
    (Column("seconds", "seconds", "number"), lambda summary: summary.seconds),
    (Column("parameters", "parameters", "number"), lambda summary: summary.parameters),
    (Column("init", "start"), lambda summary: summary.init),
    (Column("views", "views"), lambda summary: summary.views),
    (Column("labels", "labels"), lambda summary: summary.labels),
    (Column("precision", "precision"), lambda summary: summary.precision),
    (Column("teacher_top1", "teacher's top-1", "number"), lambda summary: summary.teacher_top1),
    (Column("source", "source"), lambda summary: summary.published.source if summary.published else None),
    (Column("conditions", "conditions"), lambda summary: summary.published.conditions if summary.published else None),
)


HIDDEN: Mapping[str, Callable[[Summary], str]] = {
    "steps": lambda summary: f"{summary.steps:,.0f} steps",
    "init": lambda summary: f"start: {summary.init}",
    "views": lambda summary: f"views: {summary.views}",
    "labels": lambda summary: f"{summary.labels} track",
    "precision": lambda summary: f"precision: {summary.precision}",
}
"""What a wide table has no columns for."""

SAID_BY_NAME: Mapping[str, Callable[[Summary], str | None]] = {
    "init": lambda summary: summary.init,
    "views": lambda summary: summary.views,
    "precision": lambda summary: summary.precision,
}
"""Facts that the name of a row, such as ``start random``, may say by itself."""


ROUNDING = 3e-4
"""Differences of two figures that result files hold with four decimals may be this far apart where they are equal."""


BELOW = {"teacher_top1", "source", "conditions"}
"""Columns for programs; people find them below the table."""


def complete_table(summaries: Sequence[Summary], title: str = "") -> Table:
    """Lay out a line for each row and number of images, with everything that is known of it."""
    footnotes = _footnotes(summaries)
    row = (Column("row", "row"), lambda summary: _name(summary, footnotes))
    layout = (*IDENTITY, row, *FIGURES)
    blocks = _blocks(summaries)
    lines = (Line(tuple(value(each) for _, value in layout), blocks[each.pair]) for each in summaries)
    note = (
        "Gap in points, accuracies in percent: mean ± sample standard deviation over n runs; steps and seconds: median."
    )
    notes = (" ".join([note, *_spread(summaries)]), *_notes(summaries, {}))
    return Table(title, tuple(column for column, _ in layout), tuple(lines), tuple(footnotes), notes)


def long_table(summaries: Sequence[Summary], title: str = "") -> Table:
    """Lay out a line for each row and number of images, for people: without columns that would say nothing."""
    table = complete_table(summaries, title)
    silent = {
        column.key
        for number, column in enumerate(table.columns)
        if all(line.values[number] is None for line in table.lines)
    }
    if all(summary.size.unit == "shots" for summary in summaries):
        silent.add("images")
    return table.without(BELOW | silent | _common(summaries))


def wide_table(summaries: Sequence[Summary], metric: Metric = "gap", title: str = "") -> Table:
    """Lay out a line for each row and a column for each number of images that was measured, with one figure."""
    measured = {summary.size for summary in summaries if _own(summary)}
    elsewhere = sorted({summary.size for summary in summaries} - measured, key=lambda size: size.rank)
    summaries = [summary for summary in summaries if summary.size in measured]
    footnotes = _footnotes(summaries)
    sizes = sorted(measured, key=lambda size: size.rank)
    columns = _wide_columns(summaries, sizes)
    rows = _rows(summaries, lambda each: _name(each, footnotes))
    lines = (
        Line((*values, *(getattr(row[size], metric) if size in row else None for size in sizes)), block)
        for (block, values), row in rows.items()
    )
    notes = [" ".join([f"{METRICS[metric]}: mean ± sample standard deviation.", *_spread(summaries)])]
    if elsewhere:
        notes.append(f"Published, but not measured here: {', '.join(map(str, elsewhere))}.")
    return Table(title, columns, tuple(lines), tuple(footnotes), (*notes, *_notes(summaries, HIDDEN)))


def _wide_columns(summaries: Sequence[Summary], sizes: Sequence[Size]) -> tuple[Column, ...]:
    return (
        *(column for column, _ in _identity(summaries)),
        Column("row", "row"),
        *(Column(str(size), str(size), "statistic") for size in sizes),
    )


def _rows(
    summaries: Sequence[Summary], name: Callable[[Summary], Value]
) -> dict[tuple[int, tuple[Value, ...]], dict[Size, Summary]]:
    """Return for each line of a wide table, by its block and what it begins with, what there is for each size."""
    blocks, identity = _blocks(summaries), _identity(summaries)
    rows: dict[tuple[int, tuple[Value, ...]], dict[Size, Summary]] = {}
    for each in summaries:
        values = (*(value(each) for _, value in identity), name(each))
        rows.setdefault((blocks[each.pair], values), {})[each.size] = each
    return rows


def _identity(summaries: Sequence[Summary]) -> list[tuple[Column, Callable[[Summary], Value]]]:
    common = _common(summaries)
    return [(column, value) for column, value in IDENTITY if column.key not in common]


def paired_table(summaries: Sequence[Summary], row: str, metric: Metric = "gap", title: str = "") -> Table:
    """Lay out by how much one figure of each row differs from that of ``row``, run by run on the same subset and seed.

    Runs of one subset are not independent of one another: fewer shots of a seed are a part of more, and training seeds
    see the same images. So each subset counts once, with the mean of its differences: in the column of a number of
    images over its training seeds, in the last columns over its numbers of images too. Those have the mean of the
    subsets, their number n, Student's t, its two-sided p, and the 95 % confidence interval of the mean; the three are
    None for a single subset, or where all subsets differ alike.

    Args:
        summaries: Of all rows.
        row: Name of the row that the others are compared with.
        metric: The figure.
        title: For people; may be empty.

    Returns:
        A line for each other row that has a number of images in common with ``row``.

    Raises:
        RequestError: Nothing was measured under that name, or there is no other row beside it.
    """
    own = [summary for summary in summaries if _own(summary)]
    bases = {(summary.pair, summary.size): summary for summary in own if summary.row == row}
    others = [each for each in own if each.row != row]
    compared = [each for each in others if (each.pair, each.size) in bases]
    if not compared:
        names = ", ".join(dict.fromkeys(each.row for each in own))
        missing = "is the only one of its pair and number of images" if bases else "was not measured"
        raise RequestError(f"can't compare with the row {row!r}, which {missing}; the rows are {names}")
    sizes = sorted({each.size for each in compared}, key=lambda size: size.rank)
    columns = (
        *_wide_columns(compared, sizes),
        Column("all", "all", "statistic"),
        Column("n", "n", "number"),
        Column("t", "t", "number"),
        Column("p", "p", "number"),
        Column("interval", "95 % interval", "interval"),
    )
    lines = []
    for (block, values), found in _rows(compared, lambda each: each.row).items():
        differences = {size: _differences(each, bases[each.pair, size], metric) for size, each in found.items()}
        figures = [Statistic.of(_of_subsets(differences.get(size, ()))) for size in sizes]
        together = _of_subsets([each for some in differences.values() for each in some])
        lines.append(Line((*values, *figures, Statistic.of(together), len(together), *_student(together)), block))
    told = [*bases.values(), *compared]
    note = (
        f"{METRICS[metric]}: difference from row {row}, run by run on the same subset and seed, mean ± sample standard "
        "deviation over subsets. Each subset counts once, with the mean of its differences over training seeds and, "
        "under all, over numbers of images, since runs that share images are not independent. For the n subsets under "
        "all: Student's t, its two-sided p (not corrected for the number of rows), and the 95 % confidence interval of "
        "the mean difference."
    )
    return Table(title, columns, tuple(lines), notes=(" ".join([note, *_spread(told)]), *_notes(told, HIDDEN)))


def _differences(summary: Summary, base: Summary, metric: Metric) -> list[tuple[int, float]]:
    """Return the seed of the subset and the difference, for each run that both rows have."""
    pairs = (
        (subset, figures[metric], base.runs[subset, seed][metric])
        for (subset, seed), figures in summary.runs.items()
        if (subset, seed) in base.runs
    )
    return [(subset, own - other) for subset, own, other in pairs if own is not None and other is not None]


def _of_subsets(differences: Sequence[tuple[int, float]]) -> list[float]:
    """Return the mean difference of each subset."""
    subsets: dict[int, list[float]] = {}
    for subset, difference in differences:
        subsets.setdefault(subset, []).append(difference)
    return [fmean(some) for some in subsets.values()]


def _student(differences: Sequence[float]) -> tuple[float | None, PValue | None, Interval | None]:
    """Return t, p and the interval."""
    if not differences or max(differences) - min(differences) < ROUNDING:
        return None, None, None
    from scipy import stats  # takes a second to import

    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    return float(test.statistic), PValue(float(test.pvalue)), Interval(float(interval.low), float(interval.high))


def _own(summary: Summary) -> bool:
    return summary.published is None


def _blocks(summaries: Sequence[Summary]) -> dict[object, int]:
    return {pair: number for number, pair in enumerate(dict.fromkeys(summary.pair for summary in summaries))}


def _common(summaries: Sequence[Summary]) -> set[str]:
    """Which columns of a pair's identity don't help to tell the pairs apart."""
    common = {column.key for column, value in IDENTITY if len({value(summary) for summary in summaries}) == 1}
    pairs = {summary.pair for summary in summaries}
    if len({(pair.data, pair.teacher, pair.student) for pair in pairs}) == len(pairs):
        common.add("teacher_digest")
    return common


def _footnote(summary: Summary) -> str | None:
    """Where a published figure stands, and what differs there; the same for all figures that it holds for."""
    figure = summary.published
    if figure is None:
        return None
    parts = [
        f"published: {figure.source}",
        "its teacher's accuracy is not given"
        if figure.teacher_top1 is None
        else f"teacher {figure.teacher_top1:.2f} %",
        *([] if figure.n is None else [f"n = {figure.n}"]),
        *filter(None, [figure.conditions]),
    ]
    return "; ".join(parts)


def _footnotes(summaries: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(text for text in map(_footnote, summaries) if text is not None))


def _name(summary: Summary, footnotes: Sequence[str]) -> str | Cited:
    text = _footnote(summary)
    return summary.row if text is None else Cited(summary.row, footnotes.index(text) + 1)


def _notes(summaries: Sequence[Summary], hidden: Mapping[str, Callable[[Summary], str]]) -> list[str]:
    """Say what is alike in all measured cells in one sentence, and in a sentence each what isn't."""
    own = [summary for summary in summaries if _own(summary)]
    facts = [{**summary.facts, **{kind: text(summary) for kind, text in hidden.items()}} for summary in own]
    alike, differing = [], []
    for kind in facts[0]:
        usual, *others = [text for text, _ in Counter(each[kind] for each in facts).most_common()]
        if others and all(_is_said_by_name(summary, kind) for summary in own):
            continue
        if others:
            told = [[own[number] for number, each in enumerate(facts) if each[kind] == text] for text in others]
            places = [f"{text} in {_places(some, own)}" for text, some in zip(others, told, strict=True)]
            differing.append(f"Not alike: {'; '.join([*places, f'everywhere else {usual}'])}.")
        else:
            alike.append(usual)
    return [f"Alike in all cells: {'; '.join(alike)}.", *differing] if alike else differing


def _spread(summaries: Sequence[Summary]) -> list[str]:
    """Say what differs among the runs behind a ±, where some row has several."""
    kinds = dict.fromkeys(_differing(summary.runs) for summary in summaries if len(summary.runs) > 1)
    return [f"± of what was measured here holds {', or '.join(kinds)}."] if kinds else []


def _differing(runs: Collection[tuple[int, int]]) -> str:
    """Say which seeds of subset and training differ among several runs."""
    if len({subset for subset, _ in runs}) == 1:
        return "training seeds alone (one subset)"
    if len({seed for _, seed in runs}) == 1:
        return "subsets alone (one training seed)"
    return "subset and training seed together"


def _is_said_by_name(summary: Summary, kind: str) -> bool:
    return kind in SAID_BY_NAME and SAID_BY_NAME[kind](summary) in re.split(r"[\s,;]+", summary.row)


def _places(some: Sequence[Summary], everything: Sequence[Summary]) -> str:
    """Name what ``some`` are as shortly as it can be done: data sets, pairs, rows, numbers of images or cells."""
    common = _common(everything)
    places: dict[str, None] = {}
    for summary in some:
        identity = [str(value(summary)) for column, value in IDENTITY if column.key not in common]
        beside = f" ({', '.join(identity)})" if identity else ""
        data = [each for each in everything if each.pair.data == summary.pair.data]
        pair = [each for each in data if each.pair == summary.pair]
        row = [each for each in pair if each.row == summary.row]
        size = [each for each in everything if each.size == summary.size]
        if "data" not in common and all(each in some for each in data):
            places[summary.pair.data] = None
        elif identity and all(each in some for each in pair):
            places[", ".join(identity)] = None
        elif all(each in some for each in row):
            places[f"'{summary.row}'{beside}"] = None
        elif len(size) > 1 and all(each in some for each in size):
            places[f"all rows at {summary.size}"] = None
        else:
            places[f"'{summary.row}' at {summary.size}{beside}"] = None
    return " and ".join(places)
