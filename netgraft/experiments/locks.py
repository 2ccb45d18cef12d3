"""A lock that its holder's children keep, and that vanishes with the last of them."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two commands on the same folder are not kept apart there
    fcntl = None  # type: ignore[assignment]


def take(path: Path) -> int | None:
    """Lock a file, made if need be; return its descriptor to hand on and to close, or None where another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
    return descriptor
