"""The result file of a part: one JSON, written whole each time that something has been measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from netgraft.files import write_text


@dataclass(frozen=True)
class Setting:
    """What a part is measured in.

    Attributes:
        device: Kind of the device, ``cuda`` or ``cpu``.
        tiny: Whether this is a rehearsal, whose sizes say nothing.
        out: Folder of the results.
        ends_at: When the part's time is over, by :func:`time.time`.
    """

    device: str
    tiny: bool
    out: Path
    ends_at: float

    def seconds_left(self) -> float:
        """Return how long the part may still take."""
        return self.ends_at - time.time()

    @property
    def work(self) -> Path:
        """Folder of what isn't a result."""
        return self.out / "work"


@dataclass
class PartResult:
    """The file of one part.

    Attributes:
        path: Of the file, which is there once the part has begun.
    """

    path: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return dict(json.loads(self.path.read_text(encoding="utf-8")))

    @property
    def finished(self) -> bool:
        """Whether the part has measured all that it measures."""
        return self.path.exists() and bool(self.content["finished"])

    @property
    def measured(self) -> dict[str, Any]:
        """What has been measured so far, by name."""
        return dict(self.content["measured"])

    def put(self, name: str, value: Any, *, dtype: str | None = None) -> None:
        """Add what was measured, and write the file.

        Args:
            name: Of what was measured.
            value: Plain values.
            dtype: In which it was computed.

        Raises:
            RunError: It can't be written.
        """
        self.content["measured"][name] = value
        if dtype is not None:
            self.content["dtype"] = sorted({*self.content["dtype"], dtype})
        self.write()

    def write(self) -> None:
        """Write the file. Raises RunError where it can't be written."""
        write_text(self.path, json.dumps(self.content, indent=1) + "\n")


def begun(path: Path, facts: Mapping[str, Any]) -> PartResult:
    """Begin a part's file, or go on with what an earlier try has measured.

    Args:
        path: Of the file.
        facts: Where and how it is measured.
    """
    result = PartResult(path)
    earlier = result.content if path.exists() else {}
    kept = {name: earlier.get(name, empty) for name, empty in (("measured", {}), ("dtype", []), ("seconds", 0.0))}
    result.content = {**facts, "finished": False, "ended": None, **kept}
    result.write()
    return result


def surroundings(device: str) -> dict[str, Any]:
    """Return device, driver, machine and versions, as each result names them.

    Args:
        device: ``cuda`` or ``cpu``.
    """
    # not every part computes by itself, and these take seconds to import
    import torch

    from netgraft.evaluation.environment import environment

    found = environment(torch.device(device, 0) if device == "cuda" else torch.device(device))
    cudnn = torch.backends.cudnn.version() if device == "cuda" else None
    versions = {**found["versions"], "cuda": torch.version.cuda, "cudnn": cudnn, "driver": _driver(device)}
    return {**found, "versions": versions}


def _driver(device: str) -> str | None:
    program = shutil.which("nvidia-smi") if device == "cuda" else None
    if program is None:
        return None
    said = subprocess.run(  # nosec B603  # no argument comes from outside
        [program, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return said.stdout.split("\n")[0].strip() or None
