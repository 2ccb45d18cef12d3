"""Save and resume: everything that a run needs to go on bit by bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netgraft.errors import RequestError, RunError
from netgraft.files import check_seal, write_sealed
from netgraft.training.options import PRECISIONS

ANEW = "remove it, and the run begins anew with --resume"
"""What can be done about a checkpoint that can't be used."""

_TYPES = {
    "fingerprint": str,
    "precision": str,
    "phase": int,
    "step": int,
    "seconds": float,
    "weights": dict,
    "optimizer": dict,
}


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
        write_sealed(path, lambda temporary: torch.save(self.__dict__, temporary))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Checkpoint:
        """Read a checkpoint of the run with this fingerprint; nothing is unpickled but tensors and plain values.

        Raises:
            RequestError: The file can't be read, has other bits than were written, or belongs to another run.
        """
        try:
            check_seal(path)
            checkpoint = cls(**torch.load(path, map_location="cpu", weights_only=True))
            checkpoint._check_types()
        except ValueError as error:
            raise RequestError(f"{path} is no checkpoint of netgraft, or a damaged one: {error}; {ANEW}") from error
        except Exception as error:  # torch.load raises many kinds for a hostile file
            raise RequestError(f"{path} is no checkpoint of netgraft ({type(error).__name__}); {ANEW}") from error
        if checkpoint.fingerprint != fingerprint:
            raise RequestError(
                f"{path} belongs to another plan, subset, teacher or seed (fingerprint {checkpoint.fingerprint[:12]}, "
                f"expected {fingerprint[:12]}); give the options of that run, or another --out"
            )
        return checkpoint

    def _check_types(self) -> None:
        for name, kind in _TYPES.items():
            value = getattr(self, name)
            if type(value) is not kind:
                raise ValueError(f"expected {kind.__name__} as {name}, got {type(value).__name__}")
        if not all(isinstance(value, Tensor) for value in self.weights.values()):
            raise ValueError("expected tensors as weights, got something else")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"expected seconds of training, got {self.seconds}")

    def check_fits(self, path: Path, steps: Sequence[int], weights: Mapping[str, Tensor]) -> None:
        """Compare with what the run would train.

        Args:
            path: Of the checkpoint, for people.
            steps: Of each phase of the plan.
            weights: State of everything that any phase trains, as the plan makes it.

        Raises:
            RequestError: It can't be of this plan.
        """
        phase, step = self.phase, self.step
        if not 0 <= phase <= len(steps):
            wrong = f"expected one of {len(steps)} phases, got phase {phase + 1}"
        elif not 0 <= step <= (steps[phase] if phase < len(steps) else 0):
            wrong = f"expected a step of phase {phase + 1}, which has {[*steps, 0][phase]}, got step {step}"
        elif self.precision not in PRECISIONS[1:]:
            wrong = f"expected precision {' or '.join(PRECISIONS[1:])}, got {self.precision!r}"
        elif _forms(self.weights) != _forms(weights):
            names = [name for name, _ in sorted(_forms(self.weights) ^ _forms(weights), key=str)]
            wrong = f"expected the weights of this plan, got others, first {names[0]!r}"
        else:
            return
        raise RequestError(f"{path} doesn't fit the plan: {wrong}; {ANEW}")


def _forms(state: Mapping[str, Tensor]) -> set[tuple[str, tuple[tuple[int, ...], torch.dtype]]]:
    return {(name, (tuple(value.shape), value.dtype)) for name, value in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser the state of a checkpoint.

    Raises:
        RequestError: It is the state of another optimiser.
    """
    try:
        # rates and the like are the plan's; only which parameters are meant is the checkpoint's
        groups = optimizer.state_dict()["param_groups"]
        if [group["params"] for group in groups] != [group["params"] for group in state["param_groups"]]:
            raise ValueError("it is of other parameters")  # noqa: TRY301  # said as all others are
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        _check_shapes(optimizer)
    except Exception as error:  # PyTorch raises many kinds
        raise RequestError(f"the checkpoint holds the state of another optimiser ({error}); {ANEW}") from error


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # how many steps were taken, or nothing before the first one
            if value is None or (name == "step" and (isinstance(value, int | float) or value.dim() == 0)):
                continue
            if value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
