"""Random numbers that are addressed, not drawn: a pure function of (seed, number, slot)."""

# not numpy's Philox: its numbers would make other views than those of all recorded results, ten times as slowly

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniform_numbers(seed: int, numbers: NDArray[np.int64], slots: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1): SplitMix64's finaliser over the seed, the view and the slot in turn.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.

    Args:
        seed: Any integer; those that differ by a multiple of 2^64 are the same.
        numbers: Of the views, (B,).
        slots: How many numbers for each view.

    Returns:
        (B, slots), multiples of 2^-53.
    """
    numbers = numbers.astype(np.uint64)
    state = _hash(np.array([seed % 2**64], dtype=np.uint64))
    state = _hash(np.add(state, numbers, dtype=np.uint64))[:, None]
    state = _hash(np.add(state, np.arange(slots, dtype=np.uint64), dtype=np.uint64))
    return np.ldexp((state >> np.uint64(11)).astype(np.float64), -53)


def _hash(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
