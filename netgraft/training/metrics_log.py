"""A run's loss terms over its steps, one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netgraft.errors import RunError
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
        """Drop the lines behind the point from which the run goes on: they will be written again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # cut off by a kill
            if (row["phase"], row["step"]) <= (phase, step):
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))
