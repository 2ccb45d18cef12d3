"""Measure everything that a GPU changes: ``python -m benchmarks.gpu --out DIR [--minutes N]``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.boxes import environment_of_checkout, run_parts
from benchmarks.gpu.part import parts
from benchmarks.gpu.result_file import PartResult, surroundings
from netgraft.errors import RequestError, RunError

MINUTES = 15.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 where all are finished, 1 where one isn't, 2 where nothing could begin."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together; 15 by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only with --tiny")
    parser.add_argument("--tiny", action="store_true", help="rehearse: the same steps in sizes that say nothing")
    asked = parser.parse_args(arguments)
    try:
        finished = _measure(asked.out, asked.minutes, asked.device, tiny=asked.tiny)
    except RequestError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    except (OSError, RunError) as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 1
    return 0 if finished else 1


def _measure(out: Path, minutes: float, device: str, *, tiny: bool) -> bool:
    if not minutes > 0:
        raise RequestError(f"expected more than 0 minutes, got {minutes:g}; leave --minutes out for {MINUTES:g}")
    if device == "cpu" and not tiny:
        raise RequestError("expected a GPU to measure, got --device cpu; add --tiny to rehearse on the CPU")
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            "expected a CUDA device, got none that PyTorch sees; run this where there is one, or rehearse it with "
            "--device cpu --tiny"
        )
    facts, environment = {"tiny": tiny, **surroundings(device)}, environment_of_checkout()
    if tiny:
        # small networks gain nothing from a second thread, and lose much where cores are shared
        facts, environment = {**facts, "threads": 1}, {**environment, "OMP_NUM_THREADS": "1"}
    every = parts(out, device, tiny=tiny)
    for part in every:
        _check_same(part.result(out), facts)
    whole = shlex.join(["python", "-m", "benchmarks.gpu", "--out", str(out), "--minutes", f"{minutes:g}"])
    print(f"{facts['machine']}, torch {facts['versions']['torch']}: {whole}", flush=True)
    return run_parts(
        every,
        out,
        60 * minutes,
        facts,
        environment=environment,
        say=lambda line: print(line, flush=True),
    )


def _check_same(result: PartResult, facts: dict[str, object]) -> None:
    """Refuse a folder of another measurement: what it has would be taken for a part of this one."""
    if not result.path.exists():
        return
    try:
        differing = [name for name in ("tiny", "device", "machine") if result.content[name] != facts[name]]
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{result.path} is no result of this command ({error!r}); give another --out") from error
    if differing:
        had = ", ".join(f"{name} {result.content[name]}" for name in differing)
        now = ", ".join(f"{name} {facts[name]}" for name in differing)
        raise RequestError(f"{result.path} was measured with {had}, not with {now}; give another --out")


if __name__ == "__main__":
    sys.exit(main())
