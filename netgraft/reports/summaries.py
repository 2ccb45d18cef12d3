"""Results of many cells, summarised: mean and standard deviation over the subsets and seeds of each row."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from netgraft.errors import RequestError
from netgraft.experiments.results import ResultFolder
from netgraft.experiments.specification import Published

Unit = Literal["shots", "images"]


ALIKE = ("method", "preset", "settings", "policy", "init", "inherit", "track", "label_source", "looks")
"""What may not differ among the runs that a mean is taken over."""


@dataclass(frozen=True)
class Statistic:
    """A figure of several runs.

    Attributes:
        mean: Of the runs.
        sd: Sample standard deviation; None for a single run, or where it isn't known.
        n: Number of runs; None where it isn't known.
    """

    mean: float
    sd: float | None = None
    n: int | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """Summarise what was measured; None where nothing was."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Pair:
    """Data set, teacher and student.

    Attributes:
        data: Name of the data set.
        teacher: Name of the teacher.
        student: Name of the student.
        digest: Of the teacher's weights.
    """

    data: str
    teacher: str
    student: str
    digest: str

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Pair:
        """Read it off a result."""
        return cls(result["data"], result["teacher"], result["student"], result["teacher_digest"])

    def __str__(self) -> str:
        return f"{self.teacher} -> {self.student} on {self.data}"


@dataclass(frozen=True)
class Size:
    """How many images a student learns from: so many a class (shots), or so many in all (images)."""

    unit: Unit
    number: int

    @property
    def rank(self) -> tuple[bool, int]:
        """Sort by this: shots in front of images."""
        return self.unit != "shots", self.number

    def __str__(self) -> str:
        return f"{self.number} {self.unit if self.number != 1 else self.unit[:-1]}"


@dataclass(frozen=True)
class Summary:
    """One row at one number of images; measured, or published by others.

    Attributes:
        pair: Data set, teacher and student.
        row: Name of the row.
        size: How many images.
        top1: Of the student, in percent.
        gap: Teacher's top-1 minus the student's, in points.
        agreement: With the teacher's answers, in percent.
        ensemble_top1: Of the ensemble that the student was trained in.
        start_gap: Teacher's top-1 minus that of a derived student before training, in points.
        teacher_top1: Of the teacher, in percent.
        n: Number of runs; None where it isn't known.
        images: In all; None where it isn't known.
        steps: Of training, median.
        seconds: Of training and evaluation, median.
        parameters: Of the student.
        init: How the student started.
        views: Name of the view policy.
        labels: Track: labeled or unlabeled.
        precision: Of the arithmetic.
        facts: What else readers must know, one text for each kind of fact.
        runs: Seeds of subset and training -> gap, top1 and agreement of that run; None where not measured.
        published: The figure, where it is one of others.
    """

    pair: Pair
    row: str
    size: Size
    top1: Statistic | None
    gap: Statistic | None
    teacher_top1: float | None
    n: int | None
    agreement: Statistic | None = None
    ensemble_top1: Statistic | None = None
    start_gap: Statistic | None = None
    images: int | None = None
    steps: int | None = None
    seconds: float | None = None
    parameters: int | None = None
    init: str | None = None
    views: str | None = None
    labels: str | None = None
    precision: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    runs: Mapping[tuple[int, int], Mapping[str, float | None]] = field(default_factory=dict)
    published: Published | None = None


def summarize(folders: Sequence[ResultFolder]) -> list[Summary]:
    """Summarise all results, pair by pair: rows as in the experiments, sizes ascending, then what is published.

    A row that several experiments have stays several rows, marked by their folders: runs of different experiments are
    never averaged.

    Raises:
        RequestError: Runs of one row were made in different ways, or it isn't clear beside what a figure belongs.
    """
    homes: dict[tuple[Pair, str], set[str]] = defaultdict(set)
    for folder in folders:
        for result in folder.results:
            homes[Pair.of(result), _row(result)].add(folder.label)
    groups: dict[tuple[Pair, str, Size], list[Mapping[str, Any]]] = defaultdict(list)
    for folder in folders:
        for result in _ordered(folder):
            pair, row = Pair.of(result), _row(result)
            name = row if len(homes[pair, row]) == 1 else f"{row} [{folder.label}]"
            groups[pair, name, _size(result)].append(result)
    measured = [_measured(*key, results) for key, results in groups.items()]
    figures = dict.fromkeys(placed for folder in folders for placed in _placed(folder))
    pairs = list(dict.fromkeys(summary.pair for summary in measured))
    everything = [*measured, *(_published(pair, figure) for pair, figure in figures)]
    return sorted(everything, key=lambda summary: pairs.index(summary.pair))


def _row(result: Mapping[str, Any]) -> str:
    """Name a result's row; nowhere does a student that was chosen on the test set pass for one that wasn't."""
    chosen = result.get("selected_on")
    return result["row"] if chosen is None else f"{result['row']} (chosen on the {chosen} set)"


def _size(result: Mapping[str, Any]) -> Size:
    return Size("shots", result["shots"]) if result["shots"] else Size("images", result["images"])


def _ordered(folder: ResultFolder) -> list[Mapping[str, Any]]:
    """Pairs and rows as the experiment names them, behind them what it doesn't name; sizes ascending."""
    cells = folder.experiment.cells if folder.experiment else ()
    pairs = list(dict.fromkeys(cell.pair for cell in cells))
    rows = list(dict.fromkeys(cell.row for cell in cells))

    def rank(names: list[str], name: str) -> int:
        return names.index(name) if name in names else len(names)

    def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
        pair, row = result["pair"], result["row"]
        named = (result["data"], result["teacher"], result["student"])
        subset = -1 if result["subset_seed"] is None else result["subset_seed"]  # a published subset may have none
        return rank(pairs, pair), named, rank(rows, row), row, _size(result).rank, subset, result["seed"]

    return sorted(folder.results, key=key)


def _measured(pair: Pair, row: str, size: Size, results: Sequence[Mapping[str, Any]]) -> Summary:
    _check(row, size, results)
    return Summary(
        pair,
        row,
        size,
        top1=Statistic.of(result["student_top1"] for result in results),
        gap=Statistic.of(result["gap"] for result in results),
        teacher_top1=results[0]["teacher_top1"],
        n=len(results),
        agreement=Statistic.of(result["agreement"] for result in results),
        ensemble_top1=Statistic.of(result.get("ensemble_top1") for result in results),
        start_gap=Statistic.of(map(_start_gap, results)),
        images=results[0]["images"],
        steps=statistics.median_low(result["steps"] for result in results),
        seconds=statistics.median(result["seconds"] for result in results),
        parameters=results[0]["parameters"],
        init=_together(result["init"] for result in results),
        views=_together(result["policy"]["name"] for result in results),
        labels=_together(result["track"] for result in results),
        precision=_together(result["computed_in"] for result in results),
        facts={**_facts(results), "runs": _runs(results)},
        runs={
            (result["subset_seed"], result["seed"]): {
                "gap": result["gap"],
                "top1": result["student_top1"],
                "agreement": result["agreement"],
            }
            for result in results
        },
    )


def _start_gap(result: Mapping[str, Any]) -> float | None:
    start = result.get("start_top1")
    return None if start is None else result["teacher_top1"] - start


def _check(row: str, size: Size, results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to average what was not made in the same way."""
    differing = [key for key in ALIKE if any(result.get(key) != results[0].get(key) for result in results)]
    if differing:
        raise RequestError(
            f"the results of row {row!r} at {size} differ in {', '.join(differing)}, not in subset and seed alone; "
            f"give the rows different names in the experiment, or remove the results that don't belong to it"
        )
    seeds = [(result["subset_seed"], result["seed"]) for result in results]
    twice = next((pair for pair in seeds if seeds.count(pair) > 1), None)
    if twice:
        raise RequestError(
            f"row {row!r} at {size} has two results for subset {twice[0]} and seed {twice[1]}; remove one of them"
        )


def _together(values: Iterable[str]) -> str:
    """The value that all have in common, or all there are."""
    return " / ".join(dict.fromkeys(values))


def _facts(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    every = [_facts_of(result) for result in results]
    return {kind: _together(facts[kind] for facts in every) for kind in every[0]}


def _facts_of(result: Mapping[str, Any]) -> dict[str, str]:
    """What a reader of a figure must know, each in words that need no heading."""
    accuracy = "accuracy not measured" if result["teacher_top1"] is None else f"{result['teacher_top1']:.2f} %"
    tested = result.get("test_images")
    threads = result["threads"]
    return {
        "teacher": f"teacher {result['teacher']} ({result['teacher_digest'][:12]}), {accuracy}",
        "test": f"{tested:,} test images" if tested else "no labelled test images",
        "selection": f"selection: {result['selection']}",
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "device": f"{result['device']} ({result['machine']}) with {threads} {'thread' if threads == 1 else 'threads'}",
    }


def _runs(results: Sequence[Mapping[str, Any]]) -> str:
    subsets = len({result["subset_seed"] for result in results})
    text = f"{subsets} {'subset' if subsets == 1 else 'subsets'}"
    return text if subsets == len(results) else f"{text}, {len(results)} runs"


def _placed(folder: ResultFolder) -> Iterator[tuple[Pair, Published]]:
    """Find the pair beside which each published figure is shown; none while it has no results."""
    if folder.experiment is None:
        return
    named: dict[str, dict[Pair, None]] = defaultdict(dict)
    for result in folder.results:
        named[result["pair"]][Pair.of(result)] = None
    known = list(dict.fromkeys(cell.pair for cell in folder.experiment.cells))
    for figure in folder.experiment.published:
        if figure.pair and figure.pair not in known:
            raise RequestError(
                f"{folder.label}: [[published]] {figure.name!r} belongs to the pair {figure.pair!r}, which the "
                f"experiment doesn't have; choose from {', '.join(known)}"
            )
        candidates = named[figure.pair] if figure.pair else {pair: None for pairs in named.values() for pair in pairs}
        if len(candidates) > 1:
            raise RequestError(
                f"{folder.label}: [[published]] {figure.name!r} could belong to "
                f'{" or ".join(map(str, candidates))}; say which with pair = "...", the name of a [[pair]]'
            )
        yield from ((pair, figure) for pair in candidates)


def _published(pair: Pair, figure: Published) -> Summary:
    gap = None if figure.teacher_top1 is None else Statistic(figure.teacher_top1 - figure.top1, figure.sd, figure.n)
    return Summary(
        pair,
        figure.name,
        Size("shots", figure.shots),
        top1=Statistic(figure.top1, figure.sd, figure.n),
        gap=gap,
        teacher_top1=figure.teacher_top1,
        n=figure.n,
        published=figure,
    )
