"""A run's loss terms over its steps, one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netgraft.errors import RequestError, RunError
from netgraft.files import write_text


@dataclass(frozen=True)
class MetricsLog:
    """A file of lines such as ``{"phase": 0, "step": 10, "lr": 0.001, "logits": 0.5}``."""

    path: Path

    def append(self, row: dict[str, Any]) -> None:
        """Write a line.

        Raises:
            RunError: It can't be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"could not write {self.path}: {error}; go on with --resume") from error

    def rewind(self, phase: int, step: int) -> None:
        """Drop the lines behind the point from which the run goes on: they will be written again.

        Raises:
            RequestError: A line is none of a run's, other than the last, which a kill may have cut off.
        """
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise self._damaged("expected a file, got something else")
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise self._damaged(str(error)) from error
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break  # cut off by a kill
                raise self._damaged(f"line {number} is no JSON") from error
            place = (row.get("phase"), row.get("step")) if isinstance(row, dict) else ()
            if not place or not all(type(value) is int for value in place):
                raise self._damaged(f"expected an object with phase and step in line {number}, got {line[:50]!r}")
            if place <= (phase, step):
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def _damaged(self, what: str) -> RequestError:
        return RequestError(f"{self.path} is damaged: {what}; remove it, and the run goes on without its lines")
