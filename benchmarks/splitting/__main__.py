"""Split one representative of each architecture class, or every model, and note what came out.

    python -m benchmarks.splitting timm            # the smallest model of each class of timm
    python -m benchmarks.splitting torchvision     # every classifier of torchvision
    python -m benchmarks.splitting timm --all      # every model of timm, as far as memory goes
    python -m benchmarks.splitting timm eva vit    # the representatives of classes with these words in their names

Each model runs in a process of its own, with a limit of time and memory; finished ones are not computed again.
benchmarks.splitting.table prints the results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchvision import models

from benchmarks.splitting.checking import check
from netgraft.models.creation import build_model

RESULTS = Path(__file__).parents[1] / "results" / "splitting"

LIMIT_SECONDS = 150
"""For one model."""

LIMIT_BYTES = 12 * 2**30

LARGEST = 190_000_000
"""Parameters of the largest model that is built: with its gradients and two copies of them it takes 3 GiB."""


def index(zoo: str) -> dict[str, dict[str, Any]]:
    """Return class and parameters of every model of a zoo; noted in a file, since it takes minutes."""
    path = RESULTS / f"index-{zoo}.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [name for name in _names(zoo) if name not in found]
    for number, name in enumerate(missing, 1):
        model = _without_weights(name)
        found[name] = {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
        if number % 50 == 0 or number == len(missing):
            write(path, found)
    return found


def _names(zoo: str) -> list[str]:
    if zoo == "torchvision":
        return [f"torchvision:{name}" for name in models.list_models(module=models)]
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")]


def _without_weights(name: str) -> nn.Module:
    try:
        with torch.device("meta"):
            return build_model(name, seed=0)
    except Exception:  # some look at numbers while they are built
        return build_model(name, seed=0)


def representatives(sizes: dict[str, dict[str, Any]]) -> list[str]:
    """Return the smallest model of each class, small ones first; timm's own test models represent nothing."""
    smallest: dict[str, str] = {}
    real = [name for name in sizes if not name.startswith("test_")]
    for name in sorted(real, key=lambda name: (sizes[name]["parameters"], name)):
        smallest.setdefault(sizes[name]["class"], name)
    return list(smallest.values())


Check = Callable[[str], dict[str, Any]]
"""From the name of a model to what came out."""


def measure(name: str, check: Check, limit_seconds: int = LIMIT_SECONDS) -> dict[str, Any]:
    """Check one model in a process of its own, which starts with everything imported."""
    start = time.perf_counter()
    processes = multiprocessing.get_context("fork")
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_send, args=(name, check, sender))
    process.start()
    sender.close()
    try:
        answered = receiver.poll(limit_seconds)
        result: dict[str, Any] = receiver.recv() if answered else {"skipped": f"more than {limit_seconds} s"}
    except EOFError:
        process.join()
        result = {"failed": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return {**result, "all_seconds": round(time.perf_counter() - start, 1)}


def _send(name: str, check: Check, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    torch.set_num_threads(1)
    try:
        sender.send(check(name))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        sender.send({"skipped" if "memory" in said else "failed": said})


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON; an unfinished file never stands under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def main() -> None:
    """Walk through one zoo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", choices=["timm", "torchvision"])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--all", action="store_true", help="every model of timm, not one of each class")
    parser.add_argument("--again", action="store_true", help="compute finished ones again")
    options = parser.parse_args()
    path = RESULTS / f"{options.zoo}.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sizes = index(options.zoo)
    names = representatives(sizes) if options.zoo == "timm" else []
    if options.all or options.zoo == "torchvision":
        names += sorted(set(sizes) - set(names), key=lambda name: sizes[name]["parameters"])
    names += [word for word in options.words if word in sizes and word not in names]
    for name in names:
        asked = not options.words or any(word in name for word in options.words)
        if not asked or (name in results and not options.again):
            continue
        size = sizes[name]["parameters"]
        results[name] = measure(name, check) if size <= LARGEST else {**sizes[name], "skipped": "needs more than 3 GiB"}
        write(path, results)
        print(name, json.dumps({k: v for k, v in results[name].items() if k != "cuts"}), flush=True)


if __name__ == "__main__":
    main()
