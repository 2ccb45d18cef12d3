"""Result files of cells: one JSON a cell, written whole, never computed twice, and read back."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from filelock import Timeout

from netgraft.data.text_files import read_json
from netgraft.errors import RequestError, RunError
from netgraft.experiments.specification import Cell, Experiment, path_component
from netgraft.files import locked, write_atomically, write_text

NOT_STORED = {"run_folder", "differ_most", "by_class", "by_confidence"}
"""Of a run: where it was computed says nothing to a reader of grids, single images and classes are for its report."""


@dataclass(frozen=True, kw_only=True)
class NeededFacts:
    """What tables are made of, and of which types it is; accuracies are None without labelled test images."""

    row: str
    pair: str
    data: str
    teacher: str
    student: str
    method: str
    teacher_digest: str
    teacher_top1: float | None
    student_top1: float | None
    gap: float | None
    agreement: float | None
    shots: int | None
    images: int
    subset_seed: int | None
    seed: int
    init: str
    track: str
    label_source: str
    policy: dict[str, Any]
    computed_in: str
    selection: str
    steps: int
    seconds: float
    parameters: int
    versions: dict[str, str]
    device: str
    machine: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class OptionalFacts:
    """What tables show as well where a result has it, and of which types it is."""

    test_images: int | None
    ensemble_top1: float | None
    start_top1: float | None
    selected_on: str


FACTS: Mapping[str, Any] = {**get_type_hints(OptionalFacts), **get_type_hints(NeededFacts)}


@dataclass(frozen=True)
class ResultFolder:
    """The results of one folder.

    Attributes:
        label: Name of the folder; its path where several have the same name.
        results: Contents of the files.
        experiment: Whose results they are; None where the folder has no copy of it.
    """

    label: str
    results: tuple[Mapping[str, Any], ...]
    experiment: Experiment | None = None


def load(folders: Sequence[Path]) -> list[ResultFolder]:
    """Read every result below the folders, apart from what isn't finished.

    A file belongs to the nearest folder above it that holds a copy of an experiment, or else to the folder given. The
    folder of a run, as ``netgraft distill`` leaves it, is a row of its own.

    Raises:
        RequestError: A folder is missing or holds no results; a file is damaged or is no result.
    """
    homes: dict[Path, list[Path]] = {}
    seen: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"there is no folder {folder}; give one with the results of an experiment")
        paths = list(_files(folder))
        if not paths:
            unfinished = "a run that isn't finished" if _is_run(folder) else "no results (*.json)"
            raise RequestError(
                f"{folder} holds {unfinished}; give one in which an experiment has finished at least one run, or a "
                "finished run"
            )
        for path in paths:
            # one folder may be named twice, or lie in another
            real = os.path.realpath(path)  # unlike Path.resolve, of links in circles too
            if real not in seen:
                seen.add(real)
                homes.setdefault(_home(path, folder), []).append(path)
    names = [home.resolve().name for home in homes]
    return [
        ResultFolder(
            home.resolve().name if names.count(home.resolve().name) == 1 else str(home),
            tuple(_read(path) for path in paths),
            Experiment.load(home / EXPERIMENT) if (home / EXPERIMENT).exists() else None,
        )
        for home, paths in homes.items()
    ]


def _files(folder: Path) -> Iterator[Path]:
    paths = sorted(folder.rglob("*.json"))
    runs = {path.parent for path in paths if path.name == RUN_CONFIG and _is_run(path.parent)}
    for path in paths:
        in_run = next((parent for parent in path.parents if parent in runs), None)
        if WORK not in path.relative_to(folder).parts[:-1] and (in_run is None or path == in_run / RUN_RESULT):
            yield path


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of one run, whose other files are no results."""
    try:
        return "fingerprint" in read_json(folder / RUN_CONFIG)
    except (OSError, ValueError, TypeError):
        return False


def _home(path: Path, folder: Path) -> Path:
    above = [parent for parent in path.parents if parent == folder or folder in parent.parents]
    return next((parent for parent in above if (parent / EXPERIMENT).exists()), folder)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is damaged ({error}); remove it to compute it again") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds no result but {type(content).__name__}; move it away, or give another folder")
    result = in_present_form(content)
    if path.name == RUN_RESULT and _is_run(path.parent):
        result = {"row": path.parent.resolve().name, "pair": "", **result}
    needed = get_type_hints(NeededFacts)
    wrong = [
        name for name, kind in FACTS.items() if (name in needed or name in result) and not _holds(result, name, kind)
    ]
    if not wrong and not isinstance(result["policy"].get("name"), str):
        wrong = ["policy"]
    # these are measured with the labels with which the teacher's is; an agreement needs none
    dependent = ("student_top1", "gap", "start_top1")
    if not wrong and result["teacher_top1"] is None and any(result.get(name) is not None for name in dependent):
        wrong = ["teacher_top1"]
    if wrong:
        named = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise RequestError(
            f"{path} is damaged or no result: it has no valid {named}; a damaged result can be removed and computed "
            "again, for anything else give another folder"
        )
    return result


def _holds(result: Mapping[str, Any], name: str, kind: Any) -> bool:
    try:
        value = msgspec.convert(result.get(name, msgspec.UNSET), kind)
    except (msgspec.ValidationError, OverflowError):
        return False
    return name in result and not (isinstance(value, float) and not math.isfinite(value))


LABEL_SOURCES = {"none": "none", "real": "real", "the teacher's answers": "teacher"}


def in_present_form(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result with the fields that results have now, whichever version wrote it.

    The first ones said track and label source in one sentence, and the view policy in another.
    """
    result = dict(content)
    if "track" not in result and isinstance(result.get("labels"), str):
        source, _, track = result["labels"].partition(": ")
        result["track"] = track.removesuffix(" track")
        if source in LABEL_SOURCES:
            result["label_source"] = LABEL_SOURCES[source]
    if "policy" not in result and isinstance(result.get("views"), str):
        result["policy"] = {"name": result["views"].partition(":")[0]}
    return result


EXPERIMENT = "experiment.toml"

RUN_CONFIG, RUN_RESULT = "config.json", "result.json"
"""In the folder of a run; its other files of JSON are about the subset, the student and what was derived."""

WORK = "work"
"""Folder of what is not finished: runs, reasons of failures, answers of teachers."""


class CellBusyError(RequestError):
    """Another command computes the cell."""


@dataclass(frozen=True)
class ResultStore:
    """A folder of result files."""

    folder: Path

    def claim(self, source: Path) -> None:
        """Keep a copy of the experiment beside its results.

        Raises:
            RequestError: The folder can't be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if source.resolve() != (self.folder / EXPERIMENT).resolve():
                # in the place of a link, not through it
                write_atomically(self.folder / EXPERIMENT, lambda temporary: _copy(source, temporary))
        except (OSError, RunError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"can't write into {self.folder}: {reason}; choose another --out") from error

    def experiment(self) -> Experiment:
        """Read the copy. Raises like :meth:`Experiment.load`."""
        return Experiment.load(self.folder / EXPERIMENT)

    def path(self, cell: Cell) -> Path:
        """Where a cell's result lies. Raises RequestError where its name would lead out of the folder."""
        return self.folder / f"{_inside(cell)}.json"

    @property
    def scratch(self) -> Path:
        """Where lies what nobody needs once all cells are finished."""
        return self.folder / WORK

    def work(self, cell: Cell) -> Path:
        """Where a cell's run lies while it isn't finished. Raises RequestError like :meth:`path`."""
        return self.scratch / _inside(cell)

    @contextmanager
    def lock(self, cell: Cell) -> Iterator[None]:
        """Keep every other command from computing the cell, from the look at its result until that is stored.

        Raises:
            CellBusyError: Another command computes it.
            RequestError: The file system can't lock.
        """
        work = self.work(cell)
        with ExitStack() as held:
            try:
                work.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(work.with_name(f".{work.name}.lock")))
            except Timeout as error:
                raise CellBusyError(f"another command is computing {cell.name}; wait until it ends") from error
            except (OSError, NotImplementedError) as error:
                reason = getattr(error, "strerror", None) or error
                raise RequestError(
                    f"can't lock {cell.name} in {self.scratch}: {reason}; choose another --out"
                ) from error
            yield

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """Return the cell's result; None while there is none.

        Raises:
            RequestError: The file is damaged, or was computed with other options.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            result = dict(read_json(path))
            asked = dict(result["asked"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RequestError(f"{path} is damaged ({error!r}); remove it to compute it again") from error
        if asked != cell.asked():
            differing = sorted(k for k in {*asked, *cell.asked()} if asked.get(k) != cell.asked().get(k))
            raise RequestError(
                f"{path} was computed with another {', '.join(differing)}; remove it, or choose another --out"
            )
        return result

    def store(self, cell: Cell, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write a finished cell and clear its run away."""
        facts = {name: value for name, value in result.items() if name not in NOT_STORED}
        content = {"cell": cell.name, "row": cell.row, "pair": cell.pair, "asked": cell.asked(), **facts}
        self.path(cell).parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path(cell), json.dumps(content, indent=1) + "\n")
        shutil.rmtree(self.work(cell), ignore_errors=True)
        return content


def _inside(cell: Cell) -> str:
    parts = cell.name.split("/")
    if any(part != path_component(part) for part in parts):
        raise RequestError(f"expected a name that stays within the folder, got {cell.name!r}; name the cell otherwise")
    return cell.name


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
