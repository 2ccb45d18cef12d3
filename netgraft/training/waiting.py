"""How OpenMP's threads wait for one another: awake for a moment only, so that other work on the machine can go on."""

from __future__ import annotations

from collections.abc import MutableMapping

SAID = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how threads wait."""

BRIEFLY = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""Of GNU's OpenMP, which PyTorch's wheels for Linux bring along, turns of a loop: its own number where there are more
threads than processors (300,000 otherwise). Of LLVM's and Intel's, milliseconds (200 otherwise)."""


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Bound the time for which a thread that waits for others keeps its processor busy.

    Where other programs run too, a thread that spins keeps the very thread from running that it waits for: small
    networks train ten and more times as long. OpenMP reads the environment once, when PyTorch is loaded, so this comes
    before. It decides no bit of any result. What a user has said stays.

    Args:
        environment: Changed in place; processes that are started from here inherit it.
    """
    if not any(name in environment for name in SAID):
        environment.update(BRIEFLY)
