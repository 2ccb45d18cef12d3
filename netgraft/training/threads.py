"""How many threads compute: all that there are, or fewer where those are faster beside whatever else runs here."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netgraft.data.threads import computing_with

SAID = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user says how many threads there are."""

WORTHWHILE = 1.1  # times faster that fewer threads must be

ROUNDS = (3, 200)

ENOUGH = 0.4  # seconds, after which no more than the fewest rounds are made

LONG = 0.8  # seconds, after which no further round is made


def number_is_said() -> bool:
    """Whether the environment says how many threads there are."""
    return any(name in os.environ for name in SAID)


@torch.no_grad()
def fastest_number(model: nn.Module, images: Tensor) -> tuple[int, str]:
    """Time forwards on all threads, on half of them, and on one.

    They take turns, and the median counts, not the shortest time: the question is how fast each is beside the other
    work on the machine. It takes less than a second, unless a forward does.

    Args:
        model: On the CPU, in eval mode.
        images: (B, C, H, W).

    Returns:
        The number, and why, for people.
    """
    every = torch.get_num_threads()
    seconds = _in_turns(model, images, sorted({every, max(1, every // 2), 1}, reverse=True))
    medians = {threads: statistics.median(each) for threads, each in seconds.items()}
    best = min(medians, key=medians.__getitem__)
    if best != every and medians[every] / medians[best] >= WORTHWHILE:
        times = f"{medians[every] / medians[best]:.1f} times as fast as {every}"
        return best, f"{'it runs' if best == 1 else 'they run'} the teacher {times} beside what else runs here"
    return every, "no fewer run the teacher faster here"


def _in_turns(model: nn.Module, images: Tensor, numbers: Sequence[int]) -> dict[int, list[float]]:
    seconds: dict[int, list[float]] = {threads: [] for threads in numbers}
    began = time.perf_counter()
    for done in range(ROUNDS[1] + 1):
        for threads in numbers:
            with computing_with(threads):
                start = time.perf_counter()
                # a forward may work in place on its input
                model(images.clone(memory_format=torch.preserve_format))
                seconds[threads].append(time.perf_counter() - start)
        passed = time.perf_counter() - began
        if passed > LONG or (done >= ROUNDS[0] and passed > ENOUGH):
            break
    # the first round warms up
    return {threads: each[1:] or each for threads, each in seconds.items()}
