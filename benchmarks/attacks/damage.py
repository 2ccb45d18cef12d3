"""Files with a bit that is another one."""

from __future__ import annotations

import random
from pathlib import Path


def flip(path: Path, bit: int) -> None:
    """Make one bit of a file, counted from its beginning, another one."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def some_bits(path: Path, count: int, seed: int) -> list[int]:
    """Choose bits of a file, evenly at random; the very first and the very last are always among them."""
    last = path.stat().st_size * 8 - 1
    return [0, last, *random.Random(seed).sample(range(last), count - 2)]  # nosec B311  # no secret
