"""The precision of the arithmetic: float32, or bfloat16 where the machine is faster that way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WORTHWHILE = 1.15  # times faster that bfloat16 must be

REPEATS = (3, 50)

ENOUGH = 0.3  # seconds, after which no more than the fewest repeats are made

HOPELESS = 2.0  # times slower, after two tries, that bfloat16 isn't tried again

ABANDONED = 3.0  # times as long as in float32, and GRACE, that a forward in bfloat16 may take

GRACE = 0.2  # seconds for what is prepared once

LONG = 0.1  # seconds of a forward of one image, from which on one is timed at a time


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

    Where bfloat16 is much the slower one, as on processors without units for it, that is known after about a second,
    whatever the size of the model: one image is tried first, and a forward that takes too long is not waited for.

    Args:
        model: On the device of ``images``, in eval mode.
        images: (B, C, H, W).

    Returns:
        ``32`` or ``bf16``, and why, for people.
    """
    device = images.device
    if device.type not in {"cpu", "cuda"}:
        return "32", f"bfloat16 is not tried on {device.type}"

    def forward(precision: str, count: int, limit: float | None = None) -> float:
        start = time.perf_counter()
        with autocast(precision, device), nullcontext() if limit is None else _Deadline(start + limit):
            # a forward may work in place on its input
            model(images[:count].clone(memory_format=torch.preserve_format))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def both(count: int) -> dict[str, float]:
        first = forward("32", count)
        return {"32": first, "bf16": forward("bf16", count, ABANDONED * first + GRACE)}

    try:
        count = 1 if both(1)["32"] > LONG else len(images)
        begun = both(count)
    except _TooLateError:
        return "32", f"bfloat16 runs the teacher more than {ABANDONED:g} times slower than float32 here"
    seconds = _best({precision: partial(forward, precision, count) for precision in begun}, begun)
    ratio = seconds["32"] / seconds["bf16"]
    chosen = "bf16" if ratio >= WORTHWHILE else "32"
    times = compared(ratio)
    # a little faster is no reason to be less exact
    only = "only " if chosen == "32" and times.endswith("faster than") else ""
    return chosen, f"bfloat16 runs the teacher {only}{times} float32 here"


class _TooLateError(Exception):
    """A forward has taken too long."""


class _Deadline(TorchFunctionMode):
    """Ends what is computed within by an error at the first operation behind some time of ``time.perf_counter``."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self._end = end

    def __torch_function__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.perf_counter() > self._end:
            raise _TooLateError
        return operation(*args, **(kwargs or {}))


def compared(ratio: float) -> str:
    """Say how many times faster or slower something is: ``2.0 times faster than``, ``10.0 times slower than``.

    Args:
        ratio: Of the other one's time to its own.
    """
    times = f"{max(ratio, 1 / ratio):.1f}"
    if times == "1.0":
        return "as fast as"
    return f"{times} times {'faster' if ratio > 1 else 'slower'} than"


def _best(runs: Mapping[str, Callable[[], float]], begun: Mapping[str, float]) -> dict[str, float]:
    """Shortest time of each, called in turn: other work on the machine can only make one longer.

    What takes milliseconds is repeated more often, since a short disturbance changes the whole of it. By hand, since
    ``torch.utils.benchmark.Timer`` repeats one statement, warmed up each time, and these take turns.

    Args:
        runs: Each returns its seconds.
        begun: Seconds of the first call of each.
    """
    shortest = dict(begun)
    began = time.perf_counter()
    for repeat in range(REPEATS[1]):
        for name, run in runs.items():
            shortest[name] = min(shortest[name], run())
        passed = time.perf_counter() - began
        # a forward that takes that long is hardly disturbed
        fewest = REPEATS[0] if shortest["32"] < ENOUGH else 1
        if shortest["bf16"] > HOPELESS * shortest["32"] or (repeat + 1 >= fewest and passed > ENOUGH):
            break
    return shortest
