"""Kill a process at the n-th time that it touches a file: an audit hook sees every one of Python's own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = frozenset(
    {
        "open",
        "os.link",
        "os.listdir",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.scandir",
        "os.truncate",
        "os.utime",
        "shutil.rmtree",
    }
)


def noting(folder: Path, log: Path) -> Callable[[], None]:
    """Return what lets a process write down each event in ``folder``, a line each; see :func:`listed`."""

    def begin() -> None:
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _watch(folder, lambda event, path: os.write(number, f"{event} {Path(path).name}\n".encode()))

    return begin


def listed(log: Path) -> list[str]:
    """Return the events of a log: their kind, and the name of the file."""
    return log.read_text().splitlines()


def killing(folder: Path, at: int) -> Callable[[], None]:
    """Return what lets a process die in front of its event number ``at``, counted from 0, by SIGKILL.

    A temporary file is cut in half first, as a kill while it is written leaves it: libraries written in C write where
    no hook sees it.
    """

    def die(event: str, path: str) -> None:
        if event == "open" and path.endswith(".tmp") and os.path.exists(path):  # noqa: PTH110 (raises no event)
            half = os.path.getsize(path) // 2  # noqa: PTH202
            os.truncate(path, half)
        os.kill(os.getpid(), signal.SIGKILL)

    return _reaching(folder, at, die)


def reaching(folder: Path, at: int, do: Callable[[], None]) -> Callable[[], None]:
    """Return what lets a process do something in front of its event number ``at``, counted from 0."""
    return _reaching(folder, at, lambda event, path: do())


def _reaching(folder: Path, at: int, do: Callable[[str, str], None]) -> Callable[[], None]:
    def begin() -> None:
        seen = -1

        def count(event: str, path: str) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                do(event, path)

        _watch(folder, count)

    return begin


def _watch(folder: Path, tell: Callable[[str, str], Any]) -> None:
    inside = f"{folder}{os.sep}"
    busy = False

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or event not in EVENTS or not details:
            return
        place = details[0]
        if not isinstance(place, str | os.PathLike):
            return
        path = os.path.abspath(os.fspath(place))  # noqa: PTH100 (resolves no link, and raises no event)
        if not f"{path}{os.sep}".startswith(inside):
            return
        busy = True
        try:
            tell(event, path)
        finally:
            busy = False

    sys.addaudithook(hook)
