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
    name = "{method}"              # of a row of the table; {option} stands for its value, {pair} for the pair's name
    settings = { steps = 1450 }    # hyper-parameters

    [[published]]                  # figures of others, shown beside
    name = "NetGraft"
    source = "Shen et al., AAAI 2021, Table 1"
    shots = [1, 10]
    top1 = [90.74, 92.89]
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import string
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from netgraft.data.text_files import read_text
from netgraft.errors import RequestError
from netgraft.jobs.options import DistillOptions, ordered
from netgraft.options import build

if TYPE_CHECKING:
    from netgraft.jobs.distill import DistillJob

OPTIONS = ordered(DistillOptions)
PAIR = tuple(name for name, option in OPTIONS.items() if option.scope == "pair")
RUN = tuple(name for name, option in OPTIONS.items() if option.scope == "run")
"""Keys that are options of ``netgraft distill``."""

PLACES = ("data", "teacher", "student", "teacher_weights", "student_weights", "class_map")
"""Options that may name a file or a folder."""

SEEDS = ("subsets", "seeds")
"""Keys that multiply out to seeds. Without ``seeds`` a cell's training seed is its subset's, so that a spread over
subsets holds both; with them each training seed meets each subset."""

SIZES = {"shots": "shot", "images": "images"}
"""How a cell's name tells its size."""

MOST_CELLS = 100_000  # years of computing

UNSAFE = re.compile(r'[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff/\\:*?"<>|]+')
"""What ends a component, or a line, or is no character, or is reserved by Windows."""

LONGEST_NAME = 180  # bytes of a path component: file systems take 255, and temporary names are longer

ASSUMED_IMAGES, ASSUMED_CLASSES = 100, 10
"""Where no data set has been opened yet; presets differ in lengths and rates by them."""

RESERVED = ("work", "answers", "experiment.toml")
"""Names in a folder of results that are no pair's."""


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
        name: Of its result file, without suffix: a safe path component; behind another one, the pair's, and a ``/``
            where there are several pairs.
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

    def paths(self) -> set[Path]:
        """Return the files and folders of this machine that it is computed from, absolute."""
        from netgraft.data.sources import is_public  # NumPy, which reading a table does without

        named = [str(self.options[name]).removeprefix("local-dir:") for name in PLACES if name in self.options]
        expanded = [Path(os.path.expanduser(name)) for name in named if not is_public(name)]  # noqa: PTH111  # no error
        return {path.absolute() for path in expanded if os.path.exists(path)}  # noqa: PTH110  # nor here


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
            content = tomllib.loads(read_text(path))
        except RecursionError:
            raise RequestError(f"can't read the experiment {path}: it is nested too deeply; give a TOML file") from None
        # tomllib raises ValueError for whole numbers of thousands of digits
        except (OSError, ValueError) as error:
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
        runs = _tables(content, "run")
        if not runs:
            raise RequestError("expected at least one [[run]], got none")
        pairs = _tables(content, "pair") or [{}]
        asked = [_Asked.of(common, pair, entry) for entry in runs for pair in pairs]
        count = sum(each.count for each in asked)
        if not 1 <= count <= MOST_CELLS:
            raise RequestError(
                f"expected lists that multiply out to 1 to {MOST_CELLS:,} cells, got {count:,}; ask for "
                f"{'fewer' if count else 'more'} values"
            )
        cells = [cell for each in asked for cell in each.cells(several=len(pairs) > 1)]
        # two names may be one to a file system
        called = Counter(unicodedata.normalize("NFC", cell.name).casefold() for cell in cells)
        twice = [name for name, count in called.items() if count > 1]
        if twice:
            raise RequestError(f'two cells are called {twice[0]}; tell them apart in name, as in "{{method}}-{{init}}"')
        # a table with all rows and few subsets is worth more than one with few rows and all subsets
        cells.sort(key=lambda cell: (cell.options.get("subset_seed", 0), cell.options.get("seed", 0)))
        published = tuple(figure for entry in _tables(content, "published") for figure in _published(entry))
        return cls(str(content.get("title", "")), tuple(cells), published)

    def check_methods(self) -> None:
        """Make sure of what the cells ask their methods for, which takes longer than reading the file.

        Raises:
            RequestError: A method, preset or hyper-parameter that doesn't exist, or a value out of range.
        """
        from netgraft.methods.method import Budget  # torch, as below
        from netgraft.methods.registry import choose

        default = OPTIONS["method"].default, OPTIONS["preset"].default
        asked = {
            (
                cell.options.get("method", default[0]),
                cell.options.get("preset", default[1]),
                *cell.settings.items(),
            ): cell
            for cell in self.cells
        }
        for (method, preset, *_), cell in asked.items():
            try:
                choose(method, preset, Budget(ASSUMED_IMAGES, ASSUMED_CLASSES), cell.settings)
            except RequestError as error:
                raise RequestError(f"{cell.name}: {error}") from error


def path_component(name: str) -> str:
    """Return a name as one component of a path that stays below its folder on every file system.

    Slashes, control characters and what Windows reserves become a dash, dots and blanks at the ends go, and what is too
    long is cut and gets a digest of the whole. A safe name stays as it is.
    """
    safe = UNSAFE.sub("-", name).strip(" .") or "-"
    if safe.casefold() in RESERVED:
        safe += "-"
    if len(safe.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        start = safe.encode()[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
        safe = f"{start}-{digest}"
    return safe


def _tables(content: Mapping[str, Any], key: str) -> list[Any]:
    found = content.get(key, [])
    if not isinstance(found, list):
        raise RequestError(f"expected [[{key}]] tables, got {key} = {found!r:.60}; write [[{key}]] above its lines")
    return found


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


@dataclass(frozen=True)
class _Asked:
    """What one run of one pair asks for, as lists that multiply out to cells."""

    pair: str
    template: str
    settings: Mapping[str, str]
    options: Mapping[str, Sequence[Any]]
    subsets: Sequence[Any]
    seeds: Sequence[Any]

    @classmethod
    def of(cls, common: Mapping[str, Any], pair: Any, entry: Any) -> _Asked:
        _check(pair, ("name", *PAIR), "[[pair]]")
        _check(entry, ("name", "settings", *PAIR, *RUN, *SEEDS), "[[run]]")
        asked = {**common, **pair, **entry}
        named = "-".join(str(pair[key]) for key in ("data", "student", "keep") if key in pair)
        settings = entry.get("settings", {})
        if not isinstance(settings, Mapping):
            raise RequestError(f"expected a table for settings, got {settings!r:.60}; write {{ name = value }}")
        return cls(
            pair=_name(pair, named),
            template=_name(entry, "{method}"),
            settings={name: _text(value) for name, value in settings.items()},
            options={name: _listed(asked[name]) for name in (*PAIR, *RUN) if name in asked},
            subsets=[OPTIONS["subset_seed"].check(seed) for seed in _listed(asked.get("subsets", 0))],
            seeds=[OPTIONS["seed"].check(seed) for seed in _listed(asked["seeds"])] if "seeds" in asked else [None],
        )

    @property
    def count(self) -> int:
        """How many cells there are."""
        return math.prod(map(len, self.options.values())) * len(self.subsets) * len(self.seeds)

    def cells(self, *, several: bool) -> Iterator[Cell]:
        """Yield the cells; each value is checked once, as often as it occurs in them."""
        for name, values in self.options.items():
            for value in values:
                OPTIONS[name].check(value)
        for values in itertools.product(*self.options.values()):
            options: dict[str, Any] = dict(zip(self.options, values, strict=True))
            row = _named(self.template, {"pair": self.pair, "method": "netgraft", **options})
            size = "".join(f"{options[key]}{word}" for key, word in SIZES.items() if key in options)
            for subset, seed in itertools.product(self.subsets, self.seeds):
                seeded = {**options, "subset_seed": subset, "seed": subset if seed is None else seed}
                place = f"subset{subset}" if seed is None else f"subset{subset}-seed{seed}"
                name = "-".join(filter(None, [re.sub(r"[^\w.+=-]+", "-", row), size, place]))
                parts = [self.pair, name] if several else [name]
                yield Cell("/".join(map(path_component, parts)), row, self.pair, seeded, self.settings)


def _name(table: Mapping[str, Any], default: str) -> str:
    name = table.get("name") or default
    if not isinstance(name, str):
        raise RequestError(f"expected a text for name, got {name!r:.60}; write it in quotes")
    return name


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _named(template: str, options: Mapping[str, Any]) -> str:
    """Put options' values in; by hand, as str.format would look into objects and make texts of any length."""
    try:
        parts = [*string.Formatter().parse(template)]
    except ValueError as error:
        raise RequestError(f"name {template!r:.200} is no template: {error}; write {{option}} for its value") from error
    named = ""
    for text, name, style, conversion in parts:
        named += text
        if name is None:
            continue
        if name not in options or style or conversion:
            asked = name if name not in options else f"{name} in a style"
            raise RequestError(f"name {template!r:.200} asks for {asked!r}; it can hold {', '.join(options)}")
        named += str(options[name])
    return named
