"""Versions and machine, as results quote them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import timm
import torch

from netgraft import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions and machine, as results quote them.

    Args:
        device: Where models ran.
    """
    return {
        "versions": {
            "netgraft": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "device": str(device),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Name the CPU, with the instructions that decide how fast bfloat16 is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in facts.items()}
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in names.get("flags", "")]
    return ", ".join([names.get("model name", platform.machine()), *flags])
