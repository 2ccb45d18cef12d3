"""Random numbers by address against the published algorithm in integers of any length."""

from __future__ import annotations

import numpy as np
import pytest

from netgraft.data.counter_rng import uniform_numbers

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """The next output of SplitMix64 (Steele et al., OOPSLA 2014) at this state."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_generator_is_the_published_one() -> None:
    # the first three outputs for seed 1234567 that implementations are checked with
    outputs = [splitmix64((1234567 + n * 0x9E3779B97F4A7C15) & MASK) for n in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63])
def test_numbers_follow_from_seed_number_and_slot(seed: int) -> None:
    numbers = np.array([0, 1, 16_383, 2**62])
    expected = [
        [
            (splitmix64((splitmix64((splitmix64(seed & MASK) + number) & MASK) + slot) & MASK) >> 11) / 2**53
            for slot in range(5)
        ]
        for number in numbers.tolist()
    ]
    assert uniform_numbers(seed, numbers, 5).tolist() == expected


def test_numbers_are_uniform_in_0_to_1() -> None:
    numbers = uniform_numbers(3, np.arange(20_000), 10)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    shares = np.histogram(numbers, bins=10, range=(0, 1))[0] / numbers.size
    # 200,000 numbers: five standard deviations
    assert np.abs(shares - 0.1).max() < 5 * np.sqrt(0.09 / numbers.size)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(10)).max() < 5 / np.sqrt(20_000)
