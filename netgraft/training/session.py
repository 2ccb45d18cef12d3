"""What a run keeps of itself, so that it can stop and go on: checkpoint, metrics, the time it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netgraft.errors import InterruptedRunError, RequestError
from netgraft.training.checkpoint import Checkpoint, what_stays
from netgraft.training.metrics_log import MetricsLog
from netgraft.training.parallel import Processes, group_of
from netgraft.training.run_log import RunLog


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        phase: Number of the phase (0-based); behind the last one, nothing is left to do.
        step: How many of its steps are done.
        optimizer: State of its optimiser; empty at its beginning.
    """

    phase: int = 0
    step: int = 0
    optimizer: dict[str, Any] = field(default_factory=dict)


class Session:
    """What one process keeps of a run: its state in a folder, and how long it trained.

    Args:
        folder: Where checkpoint and metrics go; None keeps nothing.
        fingerprint: Of everything that decides the result; another run's checkpoint is refused.
        precision: As asked for.
        save_every: Seconds, at least, between two checkpoints within a phase.
        stop: Says whether to save and leave.
        trainables: What each phase trains.
        steps: How many each phase takes.
        processes: That carry out the run.
        log: Kind of :class:`netgraft.training.run_log.RunLog` that the first process keeps besides; none if None.

    Attributes:
        precision: In which the run computes: as asked for, ``auto`` perhaps, until it is restored or chosen.
    """

    def __init__(
        self,
        *,
        folder: Path | None,
        fingerprint: str,
        precision: str,
        save_every: float,
        stop: Callable[[], bool],
        trainables: nn.ModuleList,
        steps: Sequence[int],
        processes: Processes,
        log: str | None = None,
    ) -> None:
        suffix = f"-{processes.rank}" if processes.rank else ""
        self._folder = folder
        self._path = folder / f"checkpoint{suffix}.pt" if folder else None
        self._log = MetricsLog(folder / f"metrics{suffix}.jsonl") if folder else None
        self._kind = None if processes.rank else log
        self._run_log: RunLog | None = None
        self._fingerprint = fingerprint
        self._save_every = save_every
        self._stop = stop
        self._trainables = trainables
        self._steps = steps
        self._processes = processes
        self._saved_at = time.monotonic()
        self._started: float | None = None
        self._seconds = 0.0
        self.precision = precision

    def restore(self, resume: bool, groups: Sequence[range]) -> ResumePoint:
        """Load weights and say where to go on: at the beginning, unless there is a checkpoint to resume from.

        Args:
            resume: Go on from the checkpoint, if there is one.
            groups: Of independent phases.

        Raises:
            RequestError: The checkpoint is damaged, belongs to another run, or was computed in another precision.
        """
        own: Checkpoint | None = None
        if resume and self._path is not None and self._path.exists():
            own = Checkpoint.load(self._path, self._fingerprint)
            own.check_fits(self._path, self._steps, self._trainables.state_dict())
        first = self._processes.of_first(own)
        if first is None:
            return self._begin_at(ResumePoint())
        # a process that trained phases of its own goes on with those, or begins them again: the first has only its own
        group = group_of(first.phase, groups)
        loaded = own if own is not None and own.phase in group else first
        begins_again = self._processes.rank > 0 and loaded is first and len(group) > 1
        if self.precision not in {"auto", loaded.precision}:
            raise RequestError(
                f"{self._path} was computed with precision {loaded.precision}, not {self.precision}; "
                "ask for the same, or choose another --out"
            )
        self.precision = loaded.precision
        self._trainables.load_state_dict(loaded.weights)
        self._seconds = loaded.seconds
        if begins_again:
            return self._begin_at(ResumePoint(group.start))
        return self._begin_at(ResumePoint(loaded.phase, loaded.step, loaded.optimizer))

    def _begin_at(self, point: ResumePoint) -> ResumePoint:
        if self._log is not None:
            self._log.rewind(point.phase, point.step)
        if self._kind is not None and self._folder is not None:
            done = sum(self._steps[: point.phase]) + point.step
            self._run_log = RunLog(self._kind, self._folder, steps=self._steps, upto=done)
        return point

    @property
    def seconds(self) -> float:
        """Wall-clock spent in :meth:`training`, over all resumes."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._seconds + running

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count the time spent in this context."""
        self._started = time.monotonic()
        try:
            yield
        finally:
            self._seconds, self._started = self.seconds, None

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self._saved_at > self._save_every

    def save(self, phase: int, step: int, optimizer: dict[str, Any]) -> None:
        """Write a checkpoint, if this process writes any.

        Args:
            phase: Number of the phase that runs, or of the next one.
            step: How many of its steps are done.
            optimizer: State of its optimiser; empty between phases.

        Raises:
            RunError: A weight is not finite, or the file can't be written.
        """
        if self._path is None or not self._processes.writes:
            return
        weights = {name: value.cpu() for name, value in self._trainables.state_dict().items()}
        Checkpoint(self._fingerprint, self.precision, phase, step, self.seconds, weights, optimizer).save(self._path)
        self._saved_at = time.monotonic()

    def what_stays(self) -> str:
        """Say what a run that fails now leaves behind."""
        return "nothing was saved" if self._path is None else what_stays(self._path)

    def log(self, row: dict[str, Any]) -> None:
        """Write a line of metrics, if this process writes any.

        Raises:
            RunError: It can't be written.
        """
        if self._log and self._processes.writes:
            self._log.append(row)
        if self._run_log and self._processes.writes:
            self._run_log.add(row)

    def close(self) -> None:
        """Finish the log that is kept besides, if there is one. Raises RunError where it can't be written."""
        if self._run_log is not None:
            self._run_log.close()

    def heed_stop(self, phase: int, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Save and leave if any process was asked to stop.

        Raises:
            InterruptedRunError: One was.
        """
        if self._processes.everywhere(not self._stop()):
            return
        self.save(phase, step, optimizer.state_dict())
        raise InterruptedRunError(
            f"stopped before step {step + 1} of phase {phase + 1}"
            + (f"; saved in {self._folder}, go on with --resume" if self._folder else "")
        )
