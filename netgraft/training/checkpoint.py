"""Save and resume: everything that a run needs to go on bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netgraft.errors import RequestError, RunError
from netgraft.files import write_atomically


def what_stays(path: Path) -> str:
    """Say which checkpoint a failed run leaves behind."""
    return f"the last good checkpoint stays at {path}" if path.exists() else "no checkpoint had been saved yet"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on bit by bit as if it had never stopped.

    Attributes:
        fingerprint: Of plan, subset, teacher and seed; another run's checkpoint is refused.
        precision: In which the run computes.
        phase: Number of the phase (0-based) that was running.
        step: How many of its steps are done.
        seconds: Training time so far.
        weights: State of everything that any phase trains.
        optimizer: State of the running phase's optimiser; empty between phases.
    """

    fingerprint: str
    precision: str
    phase: int
    step: int
    seconds: float
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write atomically.

        Raises:
            RunError: A weight is not finite, or the file can't be written; the last checkpoint stays.
        """
        for name, value in self.weights.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise RunError(
                    f"{name} is no longer finite at step {self.step} of phase {self.phase + 1}; {what_stays(path)}; "
                    "try a lower rate"
                )
        write_atomically(path, lambda temporary: torch.save(self.__dict__, temporary))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Checkpoint:
        """Read a checkpoint of the run with this fingerprint; nothing is unpickled but tensors and plain values.

        Raises:
            RequestError: The file can't be read or belongs to another run.
        """
        try:
            checkpoint = cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load raises many kinds for a damaged or hostile file
            raise RequestError(f"{path} is no checkpoint of netgraft ({type(error).__name__}); remove it") from error
        if checkpoint.fingerprint != fingerprint:
            raise RequestError(
                f"{path} belongs to another plan, subset, teacher or seed (fingerprint {checkpoint.fingerprint[:12]}, "
                f"expected {fingerprint[:12]}); give the options of that run, or another --out"
            )
        return checkpoint
