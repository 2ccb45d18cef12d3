"""Which of many attacks are tried today: others than yesterday, and the same again where that is asked for."""

from __future__ import annotations

import os
import time

VARIABLE = "NETGRAFT_ROTATION"


def rotation() -> int:
    """Return the number that ``NETGRAFT_ROTATION`` holds, or else that of today, counted in days."""
    return int(os.environ.get(VARIABLE) or time.time() // 86400)


def rotated(count: int, chosen: int, by: int) -> list[int]:
    """Return ``chosen`` of the numbers 0 to ``count - 1`` at even distances, which move on by one with ``by``.

    As many neighbouring ``by`` as a distance has numbers reach every number.
    """
    chosen = min(count, chosen)
    return [(by + position * count // chosen) % count for position in range(chosen)]
