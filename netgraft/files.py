"""Atomic writing: a reader finds the old file or the new one, never half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from netgraft.errors import RunError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place.

    Raises:
        RunError: The file could not be written, a full disk for instance; what stood there before still does.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        # torch and safetensors don't name a full disk, so say how much is left of it
        left = f"; {shutil.disk_usage(path.parent).free / 2**20:.1f} MiB are left there" if path.parent.is_dir() else ""
        raise RunError(f"could not write {path}: {error}{left}; free some space and go on with --resume") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
