"""The precision of the arithmetic: float32, or bfloat16 where the machine is faster that way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

WORTHWHILE = 1.15  # times faster that bfloat16 must be

REPEATS = (3, 50)

ENOUGH = 0.3  # seconds, after which no more than the fewest repeats are made


def compute_dtype(precision: str) -> torch.dtype:
    """Return the type of activations in ``32`` or ``bf16``."""
    return {"32": torch.float32, "bf16": torch.bfloat16}[precision]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which convolutions and matrix products run in ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def timed_images(size: tuple[int, int, int]) -> int:
    """Say how many images of (C, H, W) make a quick and telling measurement."""
    return max(4, min(32, 2**15 // (size[1] * size[2])))


@torch.no_grad()
def fastest(model: nn.Module, images: Tensor) -> tuple[str, str]:
    """Time a forward of ``model`` in each precision.

    Args:
        model: On the device of ``images``, in eval mode.
        images: (B, C, H, W).

    Returns:
        ``32`` or ``bf16``, and why, for people.
    """
    device = images.device
    if device.type not in {"cpu", "cuda"}:
        return "32", f"bfloat16 is not tried on {device.type}"

    def forward(precision: str) -> Callable[[], Any]:
        def run() -> None:
            with autocast(precision, device):
                # a forward may work in place on its input
                model(images.clone(memory_format=torch.preserve_format))
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    seconds = _best({precision: forward(precision) for precision in ("32", "bf16")})
    ratio = seconds["32"] / seconds["bf16"]
    chosen = "bf16" if ratio >= WORTHWHILE else "32"
    times = compared(ratio)
    # a little faster is no reason to be less exact
    only = "only " if chosen == "32" and times.endswith("faster than") else ""
    return chosen, f"bfloat16 runs the teacher {only}{times} float32 here"


def compared(ratio: float) -> str:
    """Say how many times faster or slower something is: ``2.0 times faster than``, ``10.0 times slower than``.

    Args:
        ratio: Of the other one's time to its own.
    """
    times = f"{max(ratio, 1 / ratio):.1f}"
    if times == "1.0":
        return "as fast as"
    return f"{times} times {'faster' if ratio > 1 else 'slower'} than"


def _best(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Shortest time of each, called in turn: other work on the machine can only make one longer.

    What takes milliseconds is repeated more often, since a short disturbance changes the whole of it. By hand, since
    ``torch.utils.benchmark.Timer`` repeats one statement, warmed up each time, and these take turns.
    """
    for run in runs.values():
        run()
    shortest = dict.fromkeys(runs, math.inf)
    began = time.perf_counter()
    for repeat in range(REPEATS[1]):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            shortest[name] = min(shortest[name], time.perf_counter() - start)
        if repeat + 1 >= REPEATS[0] and time.perf_counter() - began > ENOUGH:
            break
    return shortest
