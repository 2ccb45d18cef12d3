"""Runs on a disk that is full, and runs that are stopped while others come."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.attacks.commands import Ended, carry_out, start
from benchmarks.attacks.file_events import reaching
from benchmarks.attacks.kills import Whole, command, gone_on

ROOM = "64m"
"""Of a small disk, once there is room again."""


def small_files(run: Whole, size: int, folder: Path) -> str:
    """Let no file of a run have more than ``size`` bytes, then go on without a limit; return what was wrong."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    wrong = _ended_or_refused(carry_out(command(run.recipe, folder), limit))
    wrong = wrong or gone_on(run, folder, carry_out(command(run.recipe, folder, "--resume")))
    shutil.rmtree(folder)
    return wrong


def can_mount(folder: Path) -> bool:
    """Whether small disks can be made here, which needs rights."""
    try:
        with small_disk(folder, "1m"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mount a disk of some size at a folder, which is made and removed; yields what gives it another size."""

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)  # nosec B603  # no shell

    folder.mkdir()
    try:
        mount(f"size={size}")
        try:
            yield lambda other: mount(f"remount,size={other}")
        finally:
            subprocess.run(["umount", str(folder)], check=True)  # nosec B603, B607  # the system's own
    finally:
        folder.rmdir()


def full_disk(run: Whole, size: int, folder: Path) -> str:
    """Run on a disk of ``size`` bytes, then with room again; return what was wrong."""
    with small_disk(folder, str(size)) as resize:
        wrong = _ended_or_refused(carry_out(command(run.recipe, folder / "disk")))
        resize(ROOM)
        return wrong or gone_on(run, folder / "disk", carry_out(command(run.recipe, folder / "disk", "--resume")))


def _ended_or_refused(ended: Ended) -> str:
    fine = ended == Ended(0, "", "") or any(ended.is_refusal(code) for code in (1, 2))
    return "" if fine else f"expected success or one sentence, got {ended}"


def stopped(run: Whole, at: int, folder: Path) -> str:
    """Stop a run in front of one of its events, let a second command come, and go on; return what was wrong."""
    process = start(command(run.recipe, folder), reaching(folder, at, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    os.waitpid(process.pid, os.WUNTRACED)
    second = carry_out(command(run.recipe, folder, "--resume"))
    os.kill(process.pid, signal.SIGCONT)
    first = process.wait()
    if not second.is_refusal(2) or "another run is at work" not in second.said:
        wrong = f"expected the second command to be refused, got {second}"
    elif first.code:
        wrong = f"expected the first command to go on, got {first}"
    else:
        wrong = gone_on(run, folder, first)
    shutil.rmtree(folder)
    return wrong
