"""Keep what native code prints off standard output, which programs read."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def native_output_to_stderr() -> Iterator[None]:
    """Send what C and C++ code prints to standard error, as long as the context lasts.

    HiGHS 1.12 prints a line of its own now and then, whatever its options say. Where there is no standard output, or
    no C library to flush, nothing changes.
    """
    if os.name != "posix":
        yield
        return
    try:
        saved = os.dup(1)
    except OSError:
        yield
        return
    _flush()
    with suppress(OSError):
        os.dup2(2, 1)
    try:
        yield
    finally:
        _flush()
        os.dup2(saved, 1)
        os.close(saved)


def _flush() -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
