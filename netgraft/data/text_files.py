"""Reading of small files that somebody else wrote: in bounded time and memory, whatever stands at their paths."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

LARGEST_TEXT = 2**26  # bytes: more than any file of text that this project writes


def read_text(path: Path, *, encoding: str = "utf-8", most: int = LARGEST_TEXT) -> str:
    """Return a file's text.

    Args:
        path: Of a regular file, or of a link to one.
        encoding: Of the text.
        most: Bytes that it may have.

    Raises:
        OSError: It can't be read, is a pipe, a device or a folder, or larger than ``most``; says what.
        UnicodeDecodeError: It is no text.
    """
    try:
        # a pipe would wait for its writer, without this flag
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL in the path
        raise OSError(str(error)) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is a folder, pipe or device, no file of text")
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it has more than {most:,} bytes")
    return content.decode(encoding)


def parse_json(text: str) -> Any:
    """Return what a text in JSON says.

    Raises:
        ValueError: It is no JSON, or lists stand in lists too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects within one another, too deeply") from None


def read_json(path: Path, *, most: int = LARGEST_TEXT) -> Any:
    """Return what a file in JSON says; arguments as of :func:`read_text`.

    Raises:
        OSError: As of :func:`read_text`.
        ValueError: It is no JSON.
    """
    return parse_json(read_text(path, most=most))
