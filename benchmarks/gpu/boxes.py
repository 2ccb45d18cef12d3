"""Run parts one after another, each in a process of its own and within a time box."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu.result_file import PartResult, begun

ROOT = Path(__file__).resolve().parents[2]

GRACE = (0.15, 20.0)
"""The end of a box, as a part of it and in seconds at most, in which a part that was asked to stop saves itself."""

KEPT_LINES = 20
"""Of what a part wrote last, which stay where it failed."""

INTERRUPTED = 130


@dataclass(frozen=True)
class Part:
    """A part of the measurement.

    Attributes:
        name: Of its result file, without suffix.
        answers: What it answers.
        share: Of the time, in parts of the sum of all shares.
        command: From the seconds that it may take to the command that measures, and writes into the result file.
    """

    name: str
    answers: str
    share: float
    command: Callable[[float], Sequence[str]]

    def result(self, out: Path) -> PartResult:
        """Return its result in a folder."""
        return PartResult(out / f"{self.name}.json")


def run_parts(
    parts: Sequence[Part],
    out: Path,
    seconds: float,
    facts: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Run all parts that aren't finished, in order.

    A part gets its share of the time that is left, so that what earlier ones didn't need isn't lost. One that is still
    at work near the end of its box is asked to stop, by SIGTERM, and killed at the end, with all that it started. What
    it has written stays, and the next one runs. So it does after one that fails.

    Args:
        parts: In order.
        out: Folder of the result files; made if it isn't there.
        seconds: For all of them together.
        facts: That each result repeats.
        environment: Of the processes; this one's if None.
        say: Told what happens.

    Returns:
        Whether all are finished.

    Raises:
        RunError: A result can't be written.
    """
    (out / "work").mkdir(parents=True, exist_ok=True)
    waiting = []
    for part in parts:
        if part.result(out).finished:
            say(f"{part.name}: finished before")
        else:
            waiting.append(part)
    end = time.monotonic() + seconds
    for number, part in enumerate(waiting):
        box = max(0.0, end - time.monotonic()) * part.share / sum(each.share for each in waiting[number:])
        say(f"{part.name}: {part.answers} (at most {box:.0f} s)")
        say(f"{part.name}: {_run(part, out, box, facts, environment)}")
    return all(part.result(out).finished for part in parts)


def _run(part: Part, out: Path, box: float, facts: Mapping[str, Any], environment: Mapping[str, str] | None) -> str:
    """Run one part; return how it ended."""
    grace = min(GRACE[0] * box, GRACE[1])
    command = [*part.command(box - grace)]
    result = begun(
        part.result(out).path,
        {"part": part.name, "answers": part.answers, **facts, "command": shlex.join(command), "box_seconds": box},
    )
    log, started = out / "work" / f"{part.name}.log", time.monotonic()
    with log.open("ab") as lines:
        process = subprocess.Popen(  # nosec B603  # a command of this package, or of a test
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=lines, stderr=lines
        )
        try:
            ended = _wait(process, box - grace, grace)
        except BaseException:
            _kill(_family(process))
            raise
    seconds = time.monotonic() - started
    # the process has written it meanwhile
    result = part.result(out)
    result.content |= {"finished": ended is None, "ended": ended, "seconds": result.content["seconds"] + seconds}
    if ended is not None:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-KEPT_LINES:]
        result.content["last_lines"] = last
    result.write()
    return f"{'finished' if ended is None else ended} after {seconds:.0f} s"


def _wait(process: subprocess.Popen[bytes], seconds: float, grace: float) -> str | None:
    """Wait for a process, and end it when its time is over; return why it isn't finished, or None if it is."""
    with suppress(subprocess.TimeoutExpired):
        code = process.wait(seconds)
        return None if code == 0 else f"failed with exit code {code}"
    family = _family(process)
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        _kill([*family, *_family(process)])
        process.wait()
        return "ended by its time box, killed"
    _kill(family)  # what it has left behind
    return "ended by its time box"


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return a process and all that it started, also in sessions of their own."""
    try:
        first = psutil.Process(process.pid)
        return [*first.children(recursive=True), first]
    except psutil.NoSuchProcess:
        return []


def _kill(family: Sequence[psutil.Process]) -> None:
    for process in family:
        with suppress(psutil.NoSuchProcess):  # psutil knows another process of the same number
            process.kill()


def environment_of_checkout() -> dict[str, str]:
    """Return an environment in which ``python -P -m netgraft`` and ``benchmarks`` are those of this checkout."""
    paths = [str(ROOT / "benchmarks" / "gpu" / "checkout"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
