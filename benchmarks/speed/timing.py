"""Alternate what is compared, so that other work on the machine slows both, and keep every measurement."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from netgraft import __version__
from netgraft.evaluation.environment import processor

RESULTS = Path(__file__).parents[1] / "results" / "speed"

REPEATS = 5


def seconds(run: Callable[[], object]) -> float:
    """Time one call, the device's work included."""
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def side_by_side(runs: Mapping[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """Call all in turn, ``repeats`` times over; each returns what it measured."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name, run in runs.items():
            measured[name].append(run())
            print(f"  {repeat + 1}/{repeats} {name}: {measured[name][-1]:.4g}", flush=True)
    return measured


def ratio(measured: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Median over the repeats of ``slow / fast``."""
    return round(statistics.median(s / f for s, f in zip(measured[slow], measured[fast], strict=True)), 3)


def median(values: list[float]) -> float:
    """Return the median to four digits."""
    return float(f"{statistics.median(values):.4g}")


def instructions() -> list[str]:
    """Name the vector instructions that PyTorch and oneDNN find here, the least first; a limit that is set, last."""
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    except OSError:
        flags = set()
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if name in flags]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    used = f"PyTorch {torch.backends.cpu.get_cpu_capability()}"
    return [*known, used, *([] if limit is None else [f"oneDNN at most {limit}"])]


def write(name: str, content: Mapping[str, Any]) -> None:
    """Write a result file with the machine and the versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    facts = {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": instructions(),
        "torch": torch.__version__,
        "netgraft": __version__,
        "python": platform.python_version(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    suffix = "-cuda" if torch.cuda.is_available() else ""
    path = RESULTS / f"{name}{suffix}.json"
    path.write_text(json.dumps({"name": name, **content, "machine": facts}, indent=1) + "\n", encoding="utf-8")
    print(f"{path.name}: {json.dumps(content.get('ratios', {}))}", flush=True)
