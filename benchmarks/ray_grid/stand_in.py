"""A process that stands for a run of ``netgraft distill``: it takes as long everywhere, whatever else computes."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from netgraft.experiments.cell_process import CellRun

SECONDS = 1.0

_PROGRAM = """
import hashlib, json, sys, time
from pathlib import Path
from filelock import FileLock
folder, computed, seconds, asked = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
folder.mkdir(parents=True, exist_ok=True)
with FileLock(folder / ".lock", blocking=False):
    if not (folder / "result.json").exists():
        began = time.perf_counter()
        print(json.dumps({"event": "progressed", "step": 1}), file=sys.stderr, flush=True)
        time.sleep(seconds)
        digest = hashlib.sha256(" ".join(asked).encode()).hexdigest()
        facts = {"student_digest": digest, "gap": 0.0, "seconds": time.perf_counter() - began}
        (folder / "result.json").write_text(json.dumps(facts))
        computed.mkdir(exist_ok=True)
        with (computed / folder.name).open("a") as file:
            file.write("once\\n")
"""
"""Holds the folder as a run does, reports once, waits, leaves a result that its arguments decide, and counts it."""


@dataclass(frozen=True)
class StandIn(CellRun):
    """What is run in a run's place. The folder beside ``answers`` counts the results that were computed."""

    def command(self) -> list[str]:
        """Return the command."""
        assert self.answers is not None
        computed = self.answers.with_name("computed")
        words = [str(self.folder), str(computed), str(SECONDS), *self.arguments, str(self.threads)]
        return [sys.executable, "-P", "-c", _PROGRAM, *words]
