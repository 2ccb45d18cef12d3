"""What jobs have in common: they claim a run folder, train, and write a result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netgraft.errors import RequestError, RunError
from netgraft.evaluation.environment import environment
from netgraft.jobs.run_folder import RESULT, RunFolder, default_folder
from netgraft.training.runner import Runner


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every job can be asked for.

    Attributes:
        seed: Of weights, views and batches.
        out: The run folder; ``runs/...`` if None.
        resume: Go on with the run in the folder.
        data_root: Where named data sets lie.
        download: Let torchvision download.
        image_size: Height and width of the images that the teacher takes; the model's own if None.
        runner: Device and precision; its seed is replaced by ``seed``.
    """

    seed: int = 0
    out: Path | None = None
    resume: bool = False
    data_root: Path | None = None
    download: bool = False
    image_size: int | None = None
    runner: Runner = field(default_factory=Runner)


@contextmanager
def claim(
    runner: Runner, out: Path | None, name: str, config: dict[str, Any], *, resume: bool
) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Start the processes and let the first hold the folder; all learn where it is and what came out already.

    Every process raises what the first one met: none may wait for one that has left.
    """
    fabric = runner.fabric
    claimed: tuple[str, dict[str, Any] | None] = ("", None)
    failure: RequestError | RunError | None = None
    with ExitStack() as held:
        if fabric.is_global_zero:
            try:
                path = out or default_folder(name, resume=resume, fingerprint=config["fingerprint"])
                folder = RunFolder(path)
                held.enter_context(folder.lock())
                folder.claim(config, resume=resume)
                claimed = (str(path), folder.result())
            except (RequestError, RunError) as error:
                failure = error
        claimed, failure = fabric.broadcast((claimed, failure))
        if failure is not None:
            raise failure
        yield Path(claimed[0]), claimed[1]


def conclude(runner: Runner, out: Path, started: float, finish: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Let the first process finish and write the result; return it in all of them."""
    result: dict[str, Any] = {}
    if runner.fabric.is_global_zero:
        result = {
            **finish(),
            **environment(runner),
            "seconds": round(time.monotonic() - started, 2),
            "run_folder": str(out),
        }
        RunFolder(out).write(RESULT, result)
    return runner.fabric.broadcast(result)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
