"""Plots of a report as points on a canvas; a template writes them as SVG.

Here and not by matplotlib, which is an extra, draws text as outlines that no screen reader reads, and takes longer than
the shortest runs. The canvas is narrow: letters stay readable on a phone, where it is as wide as the screen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 240

LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 40

COLOURS = ("#0072B2", "#B34E00", "#00704F", "#8F3F72", "#000000", "#7A5C00")
"""Those of Okabe and Ito, darkened to a contrast of 4.5 on white."""

DASHES = ("", "7 3", "2 3", "10 3 2 3", "5 2", "1 4")

MOST_POINTS = 200
"""Of a curve; each stands for the mean of what lies around it."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and the text beside it."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A line of a plot: ``points`` as SVG takes them, its style and its name."""

    name: str
    points: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Plot:
    """A plot, ready to be written.

    Attributes:
        title: What is seen, for people who don't see it too.
        summary: What it shows, in a sentence.
        x_label: Of the axis below.
        x_ticks: On it.
        y_ticks: On the axis at the left.
        curves: Lines.
        marks: Points with names.
    """

    title: str
    summary: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...] = ()
    marks: tuple[tuple[float, float, str], ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Scale:
    """From figures to places on the canvas: ``low`` and ``high`` are figures, ``start`` and ``end`` places."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the place of a figure."""
        low, high, value = (
            (math.log10(self.low), math.log10(self.high), math.log10(value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> tuple[Tick, ...]:
        """Return marks at round figures; on a logarithmic scale at powers of ten, and where these are few between."""
        if not self.logarithmic:
            return tuple(Tick(self.at(value), f"{value:.12g}") for value in round_figures(self.low, self.high))
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            values = [factor * 10.0**power for power in powers for factor in factors]
            inside = [value for value in values if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)]
            if len(inside) >= 3:
                break
        return tuple(Tick(self.at(value), f"{value:.3g}") for value in inside)


def round_figures(low: float, high: float, most: int = 6) -> list[float]:
    """Return up to ``most`` multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / (most - 1)))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= most - 1 + 1e-9)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most ``most`` points of a curve, each the mean of neighbours."""
    size = math.ceil(len(steps) / most)
    groups = [(steps[start : start + size], values[start : start + size]) for start in range(0, len(steps), size)]
    return [(sum(at) / len(at), sum(figures) / len(figures)) for at, figures in groups]


def loss_plot(title: str, steps: Sequence[int], terms: Mapping[str, Sequence[float]]) -> Plot:
    """Draw loss terms over the steps of a phase; the scale is logarithmic where they differ thirtyfold.

    Args:
        title: Of the phase.
        steps: Ascending.
        terms: Values at these steps, by name.
    """
    thin = {name: thinned(steps, values) for name, values in terms.items()}
    figures = [value for points in thin.values() for _, value in points]
    low, high = min(figures), max(figures)
    logarithmic = low > 0 and high > 30 * low
    y = Scale(low if logarithmic else min(0.0, low), high if high > low else low + 1, HEIGHT - BOTTOM, TOP, logarithmic)
    x = Scale(0, max(steps), LEFT, WIDTH - RIGHT)
    curves = tuple(
        Curve(
            name,
            " ".join(f"{x.at(step)},{y.at(value)}" for step, value in points),
            COLOURS[number % len(COLOURS)],
            DASHES[number % len(DASHES)],
        )
        for number, (name, points) in enumerate(thin.items())
    )
    ends = "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in terms.items())
    scale = " on a logarithmic scale" if logarithmic else ""
    return Plot(title, f"{ends}{scale}", "step", x.ticks(), y.ticks(), curves)


def confidence_plot(confidences: Sequence[float], figures: Sequence[float], *, figure: str) -> Plot:
    """Draw how often answers are what they should be over how sure the student is of them.

    Args:
        confidences: Means of bins, in percent, ascending.
        figures: In percent, of the same bins.
        figure: What these say: ``right``, for instance.
    """
    low = min(90, 10 * math.floor(min(*confidences, *figures) / 10))
    x, y = Scale(low, 100, LEFT, WIDTH - RIGHT), Scale(low, 100, HEIGHT - BOTTOM, TOP)
    line = " ".join(f"{x.at(a)},{y.at(b)}" for a, b in zip(confidences, figures, strict=True))
    diagonal = f"{x.at(low)},{y.at(low)} {x.at(100)},{y.at(100)}"
    summary = "; ".join(f"{a:.0f} % sure: {b:.0f} % {figure}" for a, b in zip(confidences, figures, strict=True))
    curves = (
        Curve(f"% {figure}", line, COLOURS[0], DASHES[0]),
        Curve("as often as it is sure", diagonal, COLOURS[4], DASHES[2]),
    )
    title = f"How often the student is {figure}, by how sure it is"
    return Plot(title, summary, "confidence of the student in %", x.ticks(), y.ticks(), curves)


def front_plot(title: str, sizes: Sequence[int], figures: Sequence[float], *, x_label: str) -> Plot:
    """Draw students by size and by how good they are, numbered, and the front of those that no other one beats.

    Args:
        title: Of the plot.
        sizes: Of each student; less is better.
        figures: In percent; more is better.
        x_label: What the sizes are, in millions.
    """
    millions = [size / 1e6 for size in sizes]
    margin = 0.1 * (max(figures) - min(figures)) or 0.5
    y = Scale(min(figures) - margin, min(100.0, max(figures) + margin), HEIGHT - BOTTOM, TOP)
    x = Scale(0, 1.1 * max(millions), LEFT, WIDTH - RIGHT)
    best = front(sizes, figures)
    line = " ".join(f"{x.at(millions[number])},{y.at(figures[number])}" for number in best)
    marks: dict[tuple[float, float], str] = {}
    for number, (size, figure) in enumerate(zip(millions, figures, strict=True), 1):
        place = x.at(size), y.at(figure)
        marks[place] = f"{marks[place]}, {number}" if place in marks else str(number)
    summary = "no other run is both smaller and better than " + ", ".join(str(number + 1) for number in best)
    curve = Curve("front", line, COLOURS[0], DASHES[1])
    return Plot(
        title,
        summary,
        x_label,
        x.ticks(),
        y.ticks(),
        (curve,),
        tuple((*place, names) for place, names in marks.items()),
    )


def front(sizes: Sequence[int], figures: Sequence[float]) -> list[int]:
    """Return the numbers of those to which none is better without being larger, nor smaller without being worse."""
    order = sorted(range(len(sizes)), key=lambda number: (sizes[number], -figures[number]))
    best: list[int] = []
    for number in order:
        if not best or figures[number] > figures[best[-1]]:
            best.append(number)
    return best
