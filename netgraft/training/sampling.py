"""Which views a step sees: a pure function of (seed, phase, step).

A resumed run needs no loader state and no generator state, only the step number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from netgraft.plan import TrainingSchedule, steps_per_epoch
from netgraft.seeding import derived_seed


@lru_cache(maxsize=4)
def _image_order(seed: int, phase: int, epoch: int, images: int) -> Tensor:
    generator = torch.Generator().manual_seed(derived_seed("order", seed, phase, epoch))
    return torch.randperm(images, generator=generator)


@lru_cache(maxsize=2)
def _view_order(seed: int, cycle: int, images: int, per_image: int) -> Tensor:
    generator = torch.Generator().manual_seed(derived_seed("views", seed, cycle))
    return torch.rand(images, per_image, generator=generator).argsort(1)


def batch_indices(
    seed: int,
    phase: int,
    step: int,
    *,
    images: int,
    per_image: int | None,
    batch_size: int,
    whole_epochs: bool = False,
    epochs_before: int = 0,
) -> Tensor:
    """Indices of the views of one step.

    An epoch shows each image once, in an order of its own, through a view that this image has not yet shown in
    this cycle; a cycle is as many epochs as there are views an image. Every phase goes through an image's views in
    the same order, so that short phases together need no more views than the longest of them. Where there is no end of
    views, each epoch of the run takes the next view of each image, so that none is seen twice.

    Args:
        seed: Of the run.
        phase: Number of the phase.
        step: Number of the step in it.
        images: How many images there are.
        per_image: How many views each has; view ``k`` shows image ``k % images``. None where there is no end of them.
        batch_size: How many views are wanted.
        whole_epochs: Stop at the end of an epoch, so that its last batch is smaller.
        epochs_before: Of earlier phases, whose views are not seen again where there is no end of them.

    Returns:
        Integers (B,), each in ``range(images * per_image)``.
    """
    if whole_epochs:
        epoch, number = divmod(step, steps_per_epoch(images, batch_size))
        start = epoch * images + number * batch_size
        stop = min(start + batch_size, (epoch + 1) * images)
    else:
        start, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    while start < stop:
        epoch, offset = divmod(start, images)
        end = min(stop, (epoch + 1) * images)
        chosen = _image_order(seed, phase, epoch, images)[offset : offset + end - start]
        if per_image is None:
            parts.append(chosen + images * (epochs_before + epoch))
        else:
            cycle, turn = divmod(epoch, per_image)
            views = _view_order(seed, cycle, images, per_image)[chosen, turn]
            parts.append(chosen + images * views)
        start = end
    return torch.cat(parts)


@dataclass(frozen=True)
class Batches:
    """The batches of all phases of a plan.

    Attributes:
        seed: Of the run.
        images: How many images there are.
        per_image: How many views each has; None where there is no end of them.
        schedules: Of the phases, in order.
    """

    seed: int
    images: int
    per_image: int | None
    schedules: Sequence[TrainingSchedule]

    def indices(self, phase: int, step: int) -> Tensor:
        """Return the numbers of the views that a step of a phase sees, (B,); see :func:`batch_indices`."""
        schedule = self.schedules[phase]
        return batch_indices(
            self.seed,
            phase,
            step,
            images=self.images,
            per_image=self.per_image,
            batch_size=schedule.batch_size,
            whole_epochs=schedule.whole_epochs,
            epochs_before=sum(map(self._epochs_of, self.schedules[:phase])),
        )

    def smallest(self) -> int | None:
        """Return how many views the smallest batch has; None without phases."""
        return min(map(self._smallest_of, self.schedules), default=None)

    def _epochs_of(self, schedule: TrainingSchedule) -> int:
        """Return how many epochs a phase begins."""
        if schedule.whole_epochs:
            return -(-schedule.steps // steps_per_epoch(self.images, schedule.batch_size))
        return -(-schedule.steps * schedule.batch_size // self.images)

    def _smallest_of(self, schedule: TrainingSchedule) -> int:
        last = self.images % schedule.batch_size
        return last if schedule.whole_epochs and last else schedule.batch_size
