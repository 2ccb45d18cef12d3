"""Pictures of results: accuracy over the number of images, or the rows of one number of images by their gap.

Rows are told apart by colour, marker and line style at once, so that neither print nor colour-blindness hides which is
which. The colours are those of Okabe and Ito, "Color Universal Design" (2008).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft.errors import RequestError
from netgraft.files import write_atomically
from netgraft.reports.summaries import Pair, Statistic, Summary, Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SUFFIXES = (".png", ".svg")


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")

DASHES: tuple[Any, ...] = (
    "-",
    (0, (8, 2)),
    (0, (8, 2, 1, 2)),
    (0, (4, 1)),
    (0, (8, 2, 1, 2, 1, 2)),
    (0, (12, 3)),
    (0, (4, 1, 1, 1)),
    (0, (12, 2, 3, 2)),
)

TOGETHER = len(COLOURS)
"""Lines that can be told apart in one picture; more are drawn in a panel each."""


ACROSS = 4
"""Panels side by side."""


QUIET = "#BBBBBB"

OTHERS = "#555555"

SPREAD = 14.0  # points over which the lines at one number of images are spread, so that their error bars can be seen

WIDTH = 7.5  # inches


@dataclass(frozen=True)
class Row:
    """One line of a picture.

    Attributes:
        name: For the legend.
        points: Number of images -> the figure.
        published: Whether it was measured by others.
    """

    name: str
    points: Mapping[int, Statistic]
    published: bool


def save(summaries: Sequence[Summary], path: Path) -> list[Path]:
    """Draw a picture for each pair; where there are several, each file's name ends with its pair.

    Returns:
        The files that were written.

    Raises:
        RequestError: The suffix is none of :data:`SUFFIXES`, matplotlib isn't installed, nothing was measured, or there
            is no such folder.
        RunError: A file could not be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"expected a picture called *.png or *.svg, got {path}; choose one of these suffixes")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent} for the picture; make it, or choose another")
    try:
        import matplotlib
    except ImportError as error:
        raise RequestError("pictures need matplotlib, which isn't installed: pip install 'netgraft[plot]'") from error
    # dollars in names are no formulas; elements of an SVG are named after the salt, or else otherwise each time
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "netgraft"}):
        pictures = draw(summaries)
        several = len(pictures) > 1
        places = {name: path.with_stem(f"{path.stem}-{name}") if several else path for name in pictures}
        for name, picture in pictures.items():
            write_atomically(places[name], partial(_write, picture, path.suffix.lower()[1:]))
    return list(places.values())


def _write(picture: Figure, form: str, path: Path) -> None:
    picture.savefig(path, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None)


def draw(summaries: Sequence[Summary]) -> dict[str, Figure]:
    """Draw a picture for each pair and each way of counting images, under names that can stand in a file's.

    Raises:
        RequestError: Nothing was measured.
    """
    groups: dict[tuple[Pair, Unit], list[Summary]] = {}
    for summary in summaries:
        if summary.top1 is not None:
            groups.setdefault((summary.pair, summary.size.unit), []).append(summary)
    measured = {key: group for key, group in groups.items() if any(each.published is None for each in group)}
    if not measured:
        raise RequestError("there are no accuracies to draw; compute the results with labelled test images")
    pictures: dict[str, Figure] = {}
    for (pair, unit), group in measured.items():
        name = "-".join([pair.data, pair.student, *([unit] if (pair, _other(unit)) in measured else [])])
        name = re.sub(r"[^\w.+-]+", "_", name)
        if name in pictures:
            name = f"{name}-{pair.digest[:12]}"  # two teachers of one student
        sizes = {each.size.number for each in group if each.published is None}
        pictures[name] = over_sizes(pair, unit, group) if len(sizes) > 1 else by_gap(pair, group)
    return pictures


def _other(unit: Unit) -> Unit:
    return "images" if unit == "shots" else "shots"


def over_sizes(pair: Pair, unit: Unit, summaries: Sequence[Summary]) -> Figure:
    """Draw accuracy over the number of images: all rows in one picture, or where they are many a panel for each."""
    rows = _rows(summaries)
    teacher = next(each.teacher_top1 for each in summaries if each.published is None)
    own = [row for row in rows if not row.published]
    picture = _one_panel(rows, teacher) if len(own) <= TOGETHER else _many_panels(rows, teacher)
    sizes = sorted({size for row in rows for size in row.points})
    for axes in picture.axes:
        _scale(axes, sizes, room=0.05 if len(picture.axes) == 1 else 0.2)
    for axes in picture.axes[-ACROSS:]:
        axes.set_xlabel("images a class" if unit == "shots" else "images")
        axes.tick_params(labelbottom=True)
    picture.supylabel("top-1 on the test images in %", fontsize="medium")
    picture.suptitle(f"{str(pair).replace('->', '→')}\n{_spread(summaries)}", fontsize="medium")
    return picture


def by_gap(pair: Pair, summaries: Sequence[Summary]) -> Figure:
    """Draw the rows of one number of images as points, the smallest gap to the teacher on top."""
    size = next(each.size for each in summaries if each.published is None)
    shown = [(each, each.gap) for each in summaries if each.size == size and each.gap is not None]
    shown.sort(key=lambda item: item[1].mean)
    _, high = _range({str(number): [gap.mean] for number, (_, gap) in enumerate(shown)}, worse=1)
    picture = _figure(1.3 + 0.24 * len(shown))
    axes = picture.subplots()
    for place, (each, gap) in enumerate(shown):
        colour, marker, inside = (COLOURS[0], "o", COLOURS[0]) if each.published is None else (OTHERS, "D", "white")
        if gap.mean > high:
            edge = ("axes fraction", "data")
            text = f"{gap.mean:.1f} →"
            axes.annotate(text, (0.99, place), xycoords=edge, ha="right", va="center", color=colour)
        else:
            style: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": inside, "linewidth": 1.2}
            axes.errorbar([gap.mean], [place], xerr=[_bar(gap)], label=each.row, capsize=2.5, **style)
    teacher = next(each.teacher_top1 for each in summaries if each.published is None)
    axes.axvline(0, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"gap to the teacher in points of top-1 (dashed: {_teacher(teacher)})")
    axes.set_xlim(*_gap_limits([gap for _, gap in shown], high))
    names = [each.row if each.published is None else f"{each.row} (published)" for each, _ in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    title = [f"{str(pair).replace('->', '→')}, {size}", _spread(summaries)]
    missing = [each.row for each in summaries if each.size == size and each.gap is None]
    if missing:
        title.append(f"not drawn, for want of their teachers' accuracies: {', '.join(missing)}")
    picture.suptitle("\n".join(title), fontsize="medium")
    return picture


def _gap_limits(gaps: Sequence[Statistic], high: float) -> tuple[float, float]:
    """Ends of the axis of gaps: the teacher and all gaps up to ``high`` with their bars."""
    drawn = [gap for gap in gaps if gap.mean <= high]
    left = min([0.0, *(gap.mean - (gap.sd or 0) for gap in drawn)])
    right = max([0.0, *(gap.mean + (gap.sd or 0) for gap in drawn)])
    length = right - left or 1.0
    # a number at the edge must not stand on a bar
    return left - 0.05 * length, right + (0.05 if len(drawn) == len(gaps) else 0.18) * length


def _figure(height: float, width: float = WIDTH) -> Figure:
    from matplotlib.figure import Figure

    # not through pyplot, which would look for a screen and keep the picture alive
    return Figure(figsize=(width, height), layout="constrained")


def _rows(summaries: Sequence[Summary]) -> list[Row]:
    points: dict[tuple[str, ...], dict[int, Statistic]] = {}
    for each in summaries:
        if each.top1 is not None:
            figure = each.published
            origin = () if figure is None else (figure.source, figure.conditions)
            points.setdefault((_label(each), *origin), {})[each.size.number] = each.top1
    return [Row(key[0], dict(sorted(row.items())), published=len(key) > 1) for key, row in points.items()]


def _label(summary: Summary) -> str:
    if summary.published is None:
        return summary.row
    its_teacher = "" if summary.teacher_top1 is None else f", teacher {summary.teacher_top1:.2f} %"
    return f"{summary.row}\n(published{its_teacher})"


def _teacher(top1: float | None) -> str:
    return "teacher" if top1 is None else f"teacher, {top1:.2f} %"


def _spread(summaries: Sequence[Summary]) -> str:
    numbers = sorted({each.n for each in summaries if each.published is None and each.n is not None})
    if numbers == [1]:
        return "single runs"
    runs = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"mean and sample standard deviation of {runs} runs"


def _bar(figure: Statistic) -> float:
    return math.nan if figure.sd is None else figure.sd


def _range(rows: Mapping[str, Sequence[float]], worse: int) -> tuple[float, float]:
    """Lowest and highest of the figures that are drawn to scale.

    A row that is so far behind three others or more that they would shrink to a third of the picture is not. ``worse``
    is 1 where large figures are bad, else -1.
    """
    extents = sorted((min(worse * x for x in row), max(worse * x for x in row)) for row in rows.values())
    while len(extents) > 3:
        best, rest = extents[-1][0], extents[:-1]
        low, high = min(low for low, _ in rest), max(high for _, high in rest)
        if best - high <= 2 * max(high - low, 0.5):
            break
        extents = rest
    ends = min(low for low, _ in extents), max(high for _, high in extents)
    return ends if worse > 0 else (-ends[1], -ends[0])


def _scale(axes: Axes, sizes: Sequence[int], room: float) -> None:
    """A logarithmic axis whose ticks are the numbers of images that there are.

    Labels are at least ``room``, a share of the axis, apart: the ends come first, then round numbers.
    """
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    reach = math.log(sizes[-1] / sizes[0])
    named: list[int] = []
    for size in sorted(sizes, key=lambda size: (size not in {sizes[0], sizes[-1]}, _roundness(size), size)):
        if all(abs(math.log(size / other)) >= room * reach for other in named):
            named.append(size)
    axes.set_xticks(sizes, [str(size) if size in named else "" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    margin = math.exp(0.07 * reach)
    axes.set_xlim(sizes[0] / margin, sizes[-1] * margin)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _roundness(number: int) -> int:
    """0 for powers of ten, 1 for five times and 2 for twice as much, 3 for all others."""
    leading = str(number).rstrip("0")
    return ("1", "5", "2").index(leading) if leading in {"1", "5", "2"} else 3


def _limits(axes: Axes, rows: Sequence[Row], teacher: float | None) -> float:
    """Set the accuracies that are drawn; return the lowest mean among them."""
    low, _ = _range({row.name: [point.mean for point in row.points.values()] for row in rows}, worse=-1)
    drawn = [point for row in rows for point in row.points.values() if point.mean >= low]
    bottom = min(point.mean - (point.sd or 0) for point in drawn)
    top = max([point.mean + (point.sd or 0) for point in drawn] + ([] if teacher is None else [teacher]))
    margin = 0.05 * (top - bottom or 1)
    axes.set_ylim(bottom - margin, top + margin)
    return low


def _beyond(row: Row, low: float) -> str:
    """The figures of a row that lies below the picture; nothing for any other."""
    if max(point.mean for point in row.points.values()) >= low:
        return ""
    return "below: " + ", ".join(f"{point.mean:.1f} at {size}" for size, point in row.points.items())


def _line(axes: Axes, row: Row, number: int, count: int, label: str, **style: Any) -> None:
    """Draw a row beside the others rather than over them, moved on paper alone: its figures stay as they are."""
    from matplotlib.transforms import ScaledTranslation

    offset = min(2.5, SPREAD / count) * (number - (count - 1) / 2) / 72
    figure = axes.get_figure(root=True)
    assert figure is not None
    moved = axes.transData + ScaledTranslation(offset, 0, figure.dpi_scale_trans)
    axes.errorbar(
        list(row.points),
        [point.mean for point in row.points.values()],
        yerr=[_bar(point) for point in row.points.values()],
        capsize=2.5,
        elinewidth=1,
        transform=moved,
        label=label,
        **style,
    )


def _own_style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % TOGETHER],
        "marker": MARKERS[number % TOGETHER],
        "linestyle": DASHES[number % TOGETHER],
        "linewidth": 1.5,
        "markersize": 6,
        # yellow alone is lost on white
        "markeredgecolor": "black",
        "markeredgewidth": 0.5,
    }


def _published_style(number: int) -> dict[str, Any]:
    return {
        "color": OTHERS,
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": ":",
        "linewidth": 1.3,
        "markersize": 6,
        "markerfacecolor": "white",
    }


def _one_panel(rows: Sequence[Row], teacher: float | None) -> Figure:
    picture = _figure(4.0)
    axes = picture.subplots()
    if teacher is not None:
        axes.axhline(teacher, color="black", linestyle="--", linewidth=1, label=_teacher(teacher))
    low = _limits(axes, rows, teacher)
    own, published = itertools.count(), itertools.count()
    for number, row in enumerate(rows):
        style = _published_style(next(published)) if row.published else _own_style(next(own))
        beyond = _beyond(row, low)
        _line(axes, row, number, len(rows), f"{row.name}\n({beyond})" if beyond else row.name, **style)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False, handlelength=4)
    return picture


def _many_panels(rows: Sequence[Row], teacher: float | None) -> Figure:
    """A panel for each measured row, with all others in grey behind it."""
    own = [row for row in rows if not row.published]
    published = [row for row in rows if row.published]
    down = math.ceil(len(own) / ACROSS)
    picture = _figure(1.1 + 1.5 * down, WIDTH + 1)
    grid = picture.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False)
    low = _limits(grid[0, 0], rows, teacher)
    for number, axes in enumerate(grid.flat):
        if number >= len(own):
            axes.remove()
            continue
        for other in own[:number] + own[number + 1 :]:
            means = [point.mean for point in other.points.values()]
            axes.plot(list(other.points), means, color=QUIET, linewidth=0.8, label="all others")
        if teacher is not None:
            axes.axhline(teacher, color="black", linestyle="--", linewidth=1, label=_teacher(teacher))
        for place, row in enumerate(published):
            _line(axes, row, 0, 1, row.name, **{**_published_style(place), "markersize": 4})
        _line(axes, own[number], 0, 1, own[number].name, **{**_own_style(0), "markersize": 4, "zorder": 3})
        axes.set_title(own[number].name, fontsize="small")
        axes.text(0.5, 0.06, _beyond(own[number], low), transform=axes.transAxes, ha="center", fontsize="x-small")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    # one entry for each name; the row itself is named above its panel
    shared = {label: handle for handle, label in zip(handles, labels, strict=True) if label != own[0].name}
    picture.legend(shared.values(), shared.keys(), loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return picture
