"""Runs on two processes that are killed together, at any moment; and runs with other numbers of threads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.attacks.kills import command, digest_of

LIMIT_SECONDS = 600


def _begin(arguments: list[str], threads: int) -> subprocess.Popen[bytes]:
    # a session of its own, so that a signal reaches the processes that it starts too
    return subprocess.Popen(  # nosec B603  # netgraft
        [sys.executable, "-P", "-m", "netgraft.cli.main", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, said.decode(errors="replace")


def whole_pair(recipe: str, folder: Path) -> tuple[str, float]:
    """Carry out a run on two processes; return its student's digest, and the seconds that it took.

    Raises:
        RuntimeError: It failed.
    """
    began = time.monotonic()
    code, said = _end(_begin(command(recipe, folder, "--devices", "2"), 1))
    if code:
        raise RuntimeError(f"{recipe} failed on two processes without being attacked: {said}")
    digest = digest_of(folder)
    shutil.rmtree(folder)
    return digest, time.monotonic() - began


def killed_pair(recipe: str, digest: str, seconds: float, folder: Path) -> str:
    """Kill both processes of a run some seconds after its start, let it go on, and say what is wrong then."""
    process = _begin(command(recipe, folder, "--devices", "2"), 1)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    _end(process)
    code, said = _end(_begin(command(recipe, folder, "--devices", "2", "--resume"), 1))
    wrong = f"expected it to go on, got {code}: {said}" if code else ""
    if not wrong and digest_of(folder) != digest:
        wrong = f"expected student {digest}, got {digest_of(folder)}"
    shutil.rmtree(folder)
    return wrong


def with_threads(recipe: str, threads: int, folder: Path) -> tuple[str, str]:
    """Run with a number of threads; return the student's digest, and what was wrong: the result must say the number.

    PyTorch takes no more of them than there are cores.
    """
    code, said = _end(_begin(command(recipe, folder), threads))
    if code:
        return "", f"expected success, got {code}: {said}"
    result = json.loads((folder / "run" / "result.json").read_text())
    shutil.rmtree(folder)
    found, expected = result["threads"], min(threads, len(os.sched_getaffinity(0)))
    return str(result["student_digest"]), "" if found == expected else f"expected {expected} threads, got {found}"
