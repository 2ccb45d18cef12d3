"""An experiment: a TOML file that multiplies out to cells, each one run of ``netgraft distill``.

::

    title = "All methods, ten images a class"

    [common]                       # of all runs; a list multiplies
    shots = [1, 10]
    subsets = [0, 1, 2]            # seeds of the few-shot subsets; also the training seeds, unless those are given
    # seeds = [0, 1]               # training seeds (weights, views, batches): each with each subset

    [[pair]]                       # data set, teacher and student belong together
    data = "digits"

    [[run]]
    method = ["kd", "at"]
    name = "{method}"              # of a row of the table; {option} stands for an option's value
    settings = { steps = 1450 }    # hyper-parameters

    [[published]]                  # figures of others, shown beside
    name = "NetGraft"
    source = "Shen et al., AAAI 2021, Table 1"
    shots = [1, 10]
    top1 = [90.74, 92.89]
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from netgraft.errors import RequestError
from netgraft.jobs.options import DistillOptions, ordered
from netgraft.options import build

if TYPE_CHECKING:
    from netgraft.jobs.distill import DistillJob

OPTIONS = ordered(DistillOptions)
PAIR = tuple(name for name, option in OPTIONS.items() if option.scope == "pair")
RUN = tuple(name for name, option in OPTIONS.items() if option.scope == "run")
"""Keys that are options of ``netgraft distill``."""

SEEDS = ("subsets", "seeds")
"""Keys that multiply out to seeds. Without ``seeds`` a cell's training seed is its subset's, so that a spread over
subsets holds both; with them each training seed meets each subset."""

SIZES = {"shots": "shot", "images": "images"}
"""How a cell's name tells its size."""


@dataclass(frozen=True)
class Published:
    """A figure from the literature.

    Attributes:
        name: Of its row.
        shots: Images a class.
        top1: In percent.
        source: Where it stands.
        pair: Name of the pair beside which it is shown; the only one if empty.
        sd: Standard deviation of ``top1``, if known.
        n: Runs behind it, if known.
        teacher_top1: Of the teacher there.
        conditions: What differs from the protocol here.
    """

    name: str
    shots: int
    top1: float
    source: str
    pair: str = ""
    sd: float | None = None
    n: int | None = None
    teacher_top1: float | None = None
    conditions: str = ""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: Of its result file, without suffix; behind a ``/`` where there are several pairs.
        row: Of the table; cells of a row differ in shots, subset and seed alone.
        pair: Name of data set, teacher and student.
        options: What is asked of ``netgraft distill``, under the names of its options.
        settings: Hyper-parameters.
    """

    name: str
    row: str
    pair: str
    options: Mapping[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)

    def asked(self) -> dict[str, Any]:
        """Return what decides the result, as the result file repeats it."""
        return {**self.options, "settings": dict(self.settings)}

    def job(self) -> DistillJob:
        """Return the job that computes it, run folder and device aside.

        Raises:
            RequestError: An option's value is of another type than the option's.
        """
        from netgraft.jobs.distill import DistillJob  # torch, which takes seconds to import

        values = {name: OPTIONS[name].check(value) for name, value in self.options.items()}
        return build(DistillJob, {**values, "settings": self.settings})

    def arguments(self) -> list[str]:
        """Return the arguments of ``netgraft`` that compute it."""
        words = ["distill"]
        for name, value in (*self.options.items(), *self.settings.items()):
            option = f"--{name.replace('_', '-')}"
            if isinstance(value, bool) and name in self.options:
                words += [option] if value else []
            else:
                words += [option, str(value)]
        return words


@dataclass(frozen=True)
class Experiment:
    """Everything that a file asks for.

    Attributes:
        title: For people.
        cells: In the order in which they are computed: all rows of the first subset, then the next.
        published: Figures to show beside.
    """

    title: str
    cells: tuple[Cell, ...]
    published: tuple[Published, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Experiment:
        """Read and check a file.

        Raises:
            RequestError: It can't be read, is no TOML, or asks for something that doesn't exist.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RequestError(f"can't read the experiment {path}: {error}; give a TOML file") from error
        try:
            return cls.parse(content)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Experiment:
        """Make an experiment of a file's content. Raises like :meth:`load`."""
        _check(content, ("title", "common", "pair", "run", "published"), "the file")
        common = content.get("common", {})
        _check(common, (*PAIR, *RUN, *SEEDS), "[common]")
        runs = content.get("run", [])
        if not runs:
            raise RequestError("expected at least one [[run]], got none")
        cells = [
            cell
            for entry in runs
            for pair in content.get("pair", [{}])
            for cell in _cells(common, pair, entry, several=len(content.get("pair", [])) > 1)
        ]
        twice = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
        if twice:
            raise RequestError(f'two cells are called {twice[0]}; tell them apart in name, as in "{{method}}-{{init}}"')
        # a table with all rows and few subsets is worth more than one with few rows and all subsets
        cells.sort(key=lambda cell: (cell.options.get("subset_seed", 0), cell.options.get("seed", 0)))
        published = tuple(figure for entry in content.get("published", []) for figure in _published(entry))
        return cls(str(content.get("title", "")), tuple(cells), published)


def _check(table: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise RequestError(f"expected a table for {where}, got {table!r}")
    unknown = [name for name in table if name not in known]
    if unknown:
        raise RequestError(f"{where} has no {unknown[0]!r}; it takes {', '.join(known)}")


def _published(entry: Any) -> Iterator[Published]:
    """One figure, or as many as there are ``shots``."""
    _check(entry, [each.name for each in fields(Published)], "[[published]]")
    several = [len(value) for value in entry.values() if isinstance(value, list)]
    if len(set(several)) > 1:
        raise RequestError(f"the lists of [[published]] {entry.get('name')} differ in length: {several}")
    for number in range(several[0] if several else 1):
        figure = {name: value[number] if isinstance(value, list) else value for name, value in entry.items()}
        try:
            yield msgspec.convert(figure, Published)
        except msgspec.ValidationError as error:
            raise RequestError(
                f"[[published]] needs name, shots, top1 and source, got {', '.join(entry)}: {error}"
            ) from error


def _cells(common: Mapping[str, Any], pair: Any, entry: Any, *, several: bool) -> Iterator[Cell]:
    _check(pair, ("name", *PAIR), "[[pair]]")
    _check(entry, ("name", "settings", *PAIR, *RUN, *SEEDS), "[[run]]")
    asked = {**common, **pair, **entry}
    pair_name = str(pair.get("name") or "-".join(str(pair[key]) for key in ("data", "student", "keep") if key in pair))
    template = str(entry.get("name", "{method}"))
    settings = {name: _text(value) for name, value in dict(entry.get("settings", {})).items()}
    subsets = _listed(asked.get("subsets", 0))
    seeds = _listed(asked["seeds"]) if "seeds" in asked else [None]
    names = [name for name in (*PAIR, *RUN) if name in asked]
    for values in itertools.product(*(_listed(asked[name]) for name in names)):
        options: dict[str, Any] = dict(zip(names, values, strict=True))
        for name, value in options.items():
            OPTIONS[name].check(value)
        row = _named(template, {"method": "netgraft", **options})
        size = "".join(f"{options[key]}{word}" for key, word in SIZES.items() if key in options)
        for subset, seed in itertools.product(subsets, seeds):
            seeded = {**options, "subset_seed": subset, "seed": subset if seed is None else seed}
            place = f"subset{subset}" if seed is None else f"subset{subset}-seed{seed}"
            name = "-".join(filter(None, [re.sub(r"[^\w.+=-]+", "-", row), size, place]))
            yield Cell(f"{pair_name}/{name}" if several else name, row, pair_name, seeded, settings)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _named(template: str, options: Mapping[str, Any]) -> str:
    try:
        return template.format(**options)
    except (KeyError, IndexError, ValueError) as error:
        raise RequestError(f"name {template!r} asks for {error}; it can hold {', '.join(options)}") from error
