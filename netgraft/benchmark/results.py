"""Result files of cells: one JSON a cell, written whole, never computed twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netgraft.benchmark.experiment import Cell, Experiment
from netgraft.errors import RequestError
from netgraft.files import write_text

EXPERIMENT = "experiment.toml"
WORK = "work"
"""Folder of what is not finished: runs, reasons of failures, answers of teachers."""


@dataclass(frozen=True)
class Results:
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
                shutil.copyfile(source, self.folder / EXPERIMENT)
        except OSError as error:
            raise RequestError(f"can't write into {self.folder}: {error.strerror}; choose another --out") from error

    def experiment(self) -> Experiment:
        """Read the copy. Raises like :meth:`Experiment.load`."""
        return Experiment.load(self.folder / EXPERIMENT)

    def path(self, cell: Cell) -> Path:
        """Where a cell's result lies."""
        return self.folder / f"{cell.name}.json"

    @property
    def scratch(self) -> Path:
        """Where lies what nobody needs once all cells are finished."""
        return self.folder / WORK

    def work(self, cell: Cell) -> Path:
        """Where a cell's run lies while it isn't finished."""
        return self.scratch / cell.name

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """Return the cell's result; None while there is none.

        Raises:
            RequestError: The file is damaged, or was computed with other options.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            result = dict(json.loads(path.read_text(encoding="utf-8")))
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
        # where it was computed says nothing to a reader
        facts = {name: value for name, value in result.items() if name != "run_folder"}
        content = {"cell": cell.name, "row": cell.row, "pair": cell.pair, "asked": cell.asked(), **facts}
        self.path(cell).parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path(cell), json.dumps(content, indent=1) + "\n")
        shutil.rmtree(self.work(cell), ignore_errors=True)
        return content
