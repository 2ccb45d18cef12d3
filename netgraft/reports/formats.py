"""Tables as text: Markdown and LaTeX for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from netgraft.reports.summaries import Statistic
from netgraft.reports.tables import Cited, Column, Interval, PValue, Table, Value

UNKNOWN = "-"


SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


MARKDOWN_SPECIAL = {ord(character): f"\\{character}" for character in "\\|*`<"} | {ord("\n"): " "}


LATEX_SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "[": "{[}",  # in front of a line it would be the argument of the line break before it
        "\n": " ",
    }
)


def markdown(table: Table) -> str:
    """Write a Markdown table, padded so that it can be read as it is."""
    cells = [[column.heading.translate(MARKDOWN_SPECIAL) for column in table.columns]]
    cells += [[_markdown_cell(value) for value in line.values] for line in table.lines]
    widths = [max(3, *(len(row[number]) for row in cells)) for number in range(len(table.columns))]
    rows = [_markdown_row(row, widths, table.columns) for row in cells]
    rule = [
        "-" * width if column.kind == "text" else "-" * (width - 1) + ":"
        for width, column in zip(widths, table.columns, strict=True)
    ]
    parts = [f"**{table.title.translate(MARKDOWN_SPECIAL)}**"] if table.title else []
    parts.append("\n".join([rows[0], f"| {' | '.join(rule)} |", *rows[1:]]))
    numbered = enumerate(table.footnotes, 1)
    below = [f"{str(number).translate(SUPERSCRIPTS)} {text}" for number, text in numbered]
    parts += [text.translate(MARKDOWN_SPECIAL) for text in (*below, *table.notes)]
    return "\n\n".join(parts)


def _markdown_row(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = (
        cell.ljust(width) if column.kind == "text" else cell.rjust(width)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def _markdown_cell(value: Value) -> str:
    if isinstance(value, Statistic):
        return " ± ".join(_figures(value))
    if isinstance(value, Cited):
        mark = str(value.footnote).translate(SUPERSCRIPTS)
        return f"{value.name} (published){mark}".translate(MARKDOWN_SPECIAL)
    return _plain(value).translate(MARKDOWN_SPECIAL)


def latex(table: Table) -> str:
    r"""Write a LaTeX table; the document needs ``\usepackage{booktabs}``."""
    rows = [_latex_row([_latex_cell(value) for value in line.values]) for line in table.lines]
    for number in range(len(rows) - 1, 0, -1):
        if table.lines[number].block != table.lines[number - 1].block:
            rows.insert(number, r"\midrule")
    numbered = enumerate(table.footnotes, 1)
    below = [rf"\textsuperscript{{{number}}} {text.translate(LATEX_SPECIAL)}" for number, text in numbered]
    below += [text.translate(LATEX_SPECIAL) for text in table.notes]
    alignment = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{table.title.translate(LATEX_SPECIAL)}}}"] if table.title else []),
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            _latex_row([column.heading.translate(LATEX_SPECIAL) for column in table.columns]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\smallskip",
            r"\parbox{\linewidth}{\footnotesize",
            " \\\\\n".join(below),
            "}",
            r"\end{table}",
        ]
    )


def _latex_row(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _latex_cell(value: Value) -> str:
    if isinstance(value, Statistic):
        figures = r" \pm ".join(_figures(value))
        return f"${figures}$"
    if isinstance(value, Interval):
        return f"${_interval(value)}$"
    if isinstance(value, Cited):
        return rf"{value.name.translate(LATEX_SPECIAL)} (published)\textsuperscript{{{value.footnote}}}"
    return _plain(value).translate(LATEX_SPECIAL)


def comma_separated(table: Table) -> str:
    """Write CSV with unrounded figures; a statistic takes three columns, an interval two; what isn't known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in _csv_names(column)])
    for line in table.lines:
        cells = zip(table.columns, line.values, strict=True)
        writer.writerow([cell for column, value in cells for cell in _csv_cells(column, value)])
    return text.getvalue().removesuffix("\n")


CSV_PARTS: Mapping[str, Sequence[str]] = {"statistic": ("mean", "sd", "n"), "interval": ("low", "high")}
"""What the columns of a kind are called that take several."""


def _csv_names(column: Column) -> list[str]:
    return [f"{column.key}_{part}" for part in CSV_PARTS.get(column.kind, ())] or [column.key]


def _csv_cells(column: Column, value: Value) -> list[str | int | float | None]:
    if isinstance(value, Statistic):
        return [value.mean, value.sd, value.n]
    if isinstance(value, Interval):
        return [value.low, value.high]
    if isinstance(value, PValue):
        return [value.probability]
    if isinstance(value, Cited):
        return [value.name]
    return [value] if value is not None else [None] * len(_csv_names(column))


def _figures(value: Statistic) -> list[str]:
    """Mean and standard deviation, or the mean alone, with two digits."""
    return [_two_digits(number) for number in ([value.mean] if value.sd is None else [value.mean, value.sd])]


def _interval(value: Interval) -> str:
    return f"[{_two_digits(value.low)}, {_two_digits(value.high)}]"


def _two_digits(number: float) -> str:
    # adding zero turns -0.0 into 0.0
    return f"{round(number, 2) + 0.0:.2f}"


def _plain(value: str | int | float | PValue | Interval | None) -> str:
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, Interval):
        return _interval(value)
    if isinstance(value, PValue):
        return f"{value.probability:.3f}" if value.probability >= 0.001 else "<0.001"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else f"{value:,.1f}"
    return value if isinstance(value, str) else f"{value:,}"


FORMATS: Mapping[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "csv": comma_separated}
