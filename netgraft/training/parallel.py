"""What several processes do together: they share batches, or train independent phases side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from netgraft.errors import InterruptedRunError, RunError
from netgraft.modules import shares_parameters
from netgraft.plan import Phase

T = TypeVar("T")


def independent_groups(phases: Sequence[Phase]) -> Iterator[range]:
    """Divide phases into runs of neighbours of which none sees what another trains.

    Yields:
        Ranges of phase numbers that cover all phases in order.
    """
    start = 0
    for number, phase in enumerate(phases):
        if any(_sees(phase, other) or _sees(other, phase) for other in phases[start:number]):
            yield range(start, number)
            start = number
    if phases:
        yield range(start, len(phases))


def _sees(phase: Phase, other: Phase) -> bool:
    """Whether what ``phase`` runs or trains has a part that ``other`` trains."""
    features = [*phase.features, *phase.teacher_features]
    connectors = [feature.connector for feature in features if feature.connector is not None]
    parts = [phase.model, phase.trainable, *connectors, *([] if phase.teacher is None else [phase.teacher])]
    return shares_parameters(nn.ModuleList(parts), other.trainable)


def group_of(phase: int, groups: Sequence[range]) -> range:
    """Return the group that a phase is in; of a number behind the last phase, that number alone."""
    return next((group for group in groups if phase in group), range(phase, phase + 1))


def phases_of_process(group: range, rank: int, count: int) -> range:
    """Return the independent phases of a group that one of ``count`` processes trains."""
    return group[rank::count]


DIED = "another process of this run has died; what was saved stays, go on with --resume"


@contextmanager
def told_of_deaths() -> Iterator[None]:
    """Say in a sentence that another process has died, where communication breaks off.

    Raises:
        RunError: Another process has died.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no errors of its own
        of_nccl = isinstance(error, getattr(torch.distributed, "DistError", ()))
        if of_nccl or "gloo" in str(error) or "by peer" in str(error):
            raise RunError(DIED) from error
        raise


class Processes:
    """The processes that carry out a plan together, as one of them sees them.

    Args:
        fabric: Launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._side_by_side = False
        self._starter = os.getppid()
        self.rank: int = fabric.global_rank
        self.count: int = fabric.world_size

    @property
    def alone(self) -> bool:
        """Whether this process shares its batches with no other just now."""
        return self.count == 1 or self._side_by_side

    @property
    def writes(self) -> bool:
        """Whether it is this process that writes what all know."""
        return self.alone or self.rank == 0

    def divide(self, group: range) -> bool:
        """Whether the phases of a group of independent ones are divided among several processes."""
        return self.count > 1 and len(group) > 1

    # --- batches

    @property
    def place_in_batch(self) -> int:
        """Which part of a batch this process sees: 0 where it sees all of it."""
        return 0 if self.alone else self.rank

    def part(self, batch: Tensor) -> Tensor:
        """Return what this process sees of a batch."""
        return batch if self.alone else batch[self.rank :: self.count]

    def weight(self, part: Tensor, batch: Tensor) -> float:
        """Return the factor of this process's loss: gradients are averaged, and its count by its part of the batch."""
        return len(part) * (1 if self.alone else self.count) / len(batch)

    def connect(self, module: nn.Module) -> Any:
        """Let the gradients of a module be averaged over the processes that share its batches."""
        return module if self.alone else self._fabric.setup_module(module)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss."""
        if self.alone:
            loss.backward()
        else:
            self._fabric.backward(loss)

    # --- agreement

    def everywhere(self, fine: bool) -> bool:
        """Whether all is fine in every process: they must leave at the same step.

        Raises:
            RunError: The process that has started this one is dead. Somebody may go on with the run already.
        """
        if self.rank and os.getppid() != self._starter:
            raise RunError(DIED)
        if self.alone:
            return fine
        votes = self._fabric.all_reduce(torch.tensor(float(fine), device=self._fabric.device), reduce_op="sum")
        assert isinstance(votes, Tensor)
        return int(votes) == self.count

    def of_first(self, value: T) -> T:
        """Return the value that the first process has."""
        return value if self.count == 1 else self._fabric.broadcast(value)

    def share(self, tensors: Iterable[Tensor], owner: int) -> None:
        """Give every process the values of one."""
        if self.alone:
            return
        for tensor in tensors:
            values = tensor.contiguous()
            torch.distributed.broadcast(values, src=owner)
            tensor.copy_(values)

    def each_alone(self, group: range, train: Callable[[int], None], trainables: nn.ModuleList) -> None:
        """Train each phase of a group of independent ones in one process alone, then give its result to all.

        Args:
            group: Numbers of the phases.
            train: Trains the phase with this number.
            trainables: What each phase of the plan trains.

        Raises:
            InterruptedRunError: This process or another was asked to stop.
            RunError: A phase of this process failed.
        """
        failure: InterruptedRunError | RunError | None = None
        self._side_by_side = True
        try:
            for number in phases_of_process(group, self.rank, self.count):
                train(number)
        except (InterruptedRunError, RunError) as error:
            failure = error
        self._side_by_side = False
        if not self.everywhere(failure is None):
            raise failure or InterruptedRunError("another process has stopped; go on with --resume")
        for place, number in enumerate(group):
            self.share(trainables[number].state_dict().values(), place % self.count)
