"""The parts, and the process of one: ``python -m benchmarks.gpu.part NAME --out DIR --until T [--tiny]``."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType

from benchmarks.gpu.boxes import INTERRUPTED, Part
from benchmarks.gpu.result_file import PartResult, Setting
from netgraft.errors import InterruptedRunError


@dataclass(frozen=True)
class _Measured:
    """What a module of this package measures; the module's name is the part's, with underscores."""

    answers: str
    share: float


MEASURED = {
    "marked-tests": _Measured("Do the tests marked cuda pass?", 0.07),
    "agreement": _Measured("Does a run on the GPU give the figures of one on the CPU?", 0.17),
    "steps": _Measured("How far are steps from bare arithmetic; would CUDA graphs or a compiler pay?", 0.12),
    "rendering": _Measured("How many views a second does each device render?", 0.04),
    "published-table": _Measured("What does the published table say, over all subsets?", 0.24),
    "cifar100-teacher": _Measured("How good a CIFAR-100 teacher can be had in minutes?", 0.14),
    "unrelated-student": _Measured("How good does a student become that shares nothing with its teacher?", 0.22),
}
"""Name -> what it answers, and its share of the time; in the order in which they run."""


def parts(out: Path, device: str, *, tiny: bool) -> list[Part]:
    """Return all parts, as processes of :func:`main`.

    Args:
        out: Folder of the results.
        device: ``cuda`` or ``cpu``.
        tiny: Whether sizes are those of a rehearsal.
    """

    def part(name: str, measured: _Measured) -> Part:
        options = ["--out", str(out.resolve()), "--device", device, *(["--tiny"] if tiny else [])]

        def command(seconds: float) -> list[str]:
            module = ["-P", "-m", "benchmarks.gpu.part", name]
            return [sys.executable, *module, *options, "--until", f"{time.time() + seconds:.1f}"]

        return Part(name, measured.answers, measured.share, command)

    return [part(name, measured) for name, measured in MEASURED.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one part and return the exit code: 0 where all is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.part")
    parser.add_argument("name", choices=MEASURED)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--until", type=float, required=True, help="when the time is over, in seconds of the epoch")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args(arguments)
    setting = Setting(asked.device, asked.tiny, asked.out, asked.until)
    try:
        # SIGINT is ignored by all that a background command starts
        signal.signal(signal.SIGTERM, _interrupt)
        module = import_module(f"benchmarks.gpu.{asked.name.replace('-', '_')}")
        module.measure(setting, PartResult(asked.out / f"{asked.name}.json"))
    except (KeyboardInterrupt, InterruptedRunError):
        return INTERRUPTED
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
