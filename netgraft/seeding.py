"""Seeds that depend on everything that is asked for, and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on every part."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's own generators on the CPU and on ``device``.

    ``torch.manual_seed`` also notes a stack for every kind of device that could yet wake up: most of a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
