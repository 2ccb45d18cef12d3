"""Looking at the test set while a student learns, and keeping the student of the best look.

The protocol here forbids it: a figure that was chosen on the test set is too good. It is asked for, and labelled
wherever it is shown, to compare with published figures that were chosen so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.data.image_set import ImageSet
from netgraft.data.loader import eval_loader
from netgraft.distillation import Distillation
from netgraft.errors import RequestError, RunError
from netgraft.evaluation.metrics import predict, top1
from netgraft.files import check_seal, write_sealed
from netgraft.training.frozen_cache import split_before_training

FILE = "selection.pt"
"""In the run folder: what was seen, and the state of the best look."""

IN_MEMORY = 2**31
"""Bytes of frozen outputs for the test images that are kept; above, they are computed at each look."""


class Watcher:
    """Looks at the test set during the last phase of a run, which goes on as if nobody had looked.

    Args:
        prepared: The run, with at least one phase.
        test: Labelled images.
        looks: How often, at even distances, the last time at the end; every step if there are fewer steps.

    Attributes:
        seen: Steps done in the last phase -> top-1 in percent.

    Raises:
        RequestError: There is no phase to look at, the images have no labels, or there is to be no look.
    """

    def __init__(self, prepared: Distillation, test: ImageSet, looks: int) -> None:
        phases = prepared.plan.phases
        if not phases or test.labels is None or looks < 1:
            raise RequestError(
                f"expected a phase of training, test images with labels and at least one look at them, got "
                f"{len(phases)} phases, {test.name} {'without' if test.labels is None else 'with'} labels and "
                f"{looks} looks; correct what is missing"
            )
        self.seen: dict[int, float] = {}
        self._number = len(phases) - 1
        self._steps = phases[-1].schedule.steps
        self._looks = looks
        self._loader = eval_loader(test, prepared.data_config)
        trainables = nn.ModuleList(phase.trainable for phase in phases)
        front, self._back = split_before_training(prepared.plan.student, trainables)
        self._front = nn.Sequential(*front)
        self._kept: Sequence[tuple[Tensor, Tensor]] | None = None

    def __call__(self, phase: int, done: int) -> None:
        """Look, if it is time.

        Args:
            phase: Number of the phase (0-based).
            done: How many of its steps are done.
        """
        if phase == self._number and done * self._looks // self._steps > (done - 1) * self._looks // self._steps:
            self.seen[done] = self._top1()

    def _top1(self) -> float:
        if self._kept is None:
            self._kept = self._frozen_outputs()
        if self._kept:
            # a forward may work in place on its input
            batches = ((maps.clone(), labels) for maps, labels in self._kept)
            return round(top1(*predict(self._back, batches)), 4)
        return round(top1(*predict(nn.Sequential(self._front, self._back), self._loader)), 4)

    def _frozen_outputs(self) -> Sequence[tuple[Tensor, Tensor]]:
        """What no phase trains is computed once; nothing where it takes too much memory."""
        kept: list[tuple[Tensor, Tensor]] = []
        for batch in self._loader:
            kept.append(predict(self._front, [batch]))
            if len(self._loader) * kept[0][0].nbytes > IN_MEMORY:
                return []
        return kept


class BestOnTest(Watcher):
    """Keeps the state that the student had at the best look, the first of equals, over interruptions too.

    Args:
        prepared: The run.
        test: Labelled images.
        looks: How often.
        folder: Of the run.
        resume: Whether looks of an interrupted run in the folder count.

    Raises:
        RequestError: As for :class:`Watcher`, or what the folder holds can't be read.
    """

    def __init__(self, prepared: Distillation, test: ImageSet, looks: int, *, folder: Path, resume: bool) -> None:
        super().__init__(prepared, test, looks)
        self._trained = prepared.plan.phases[-1].trainable
        self._path = folder / FILE
        self._best: int | None = None
        self._state: dict[str, Tensor] = {}
        if resume and self._path.exists():
            self._read()

    @property
    def best(self) -> int:
        """Number of the step of the last phase behind which the best look was.

        Raises:
            RunError: Looks of the run are missing.
        """
        expected = min(self._looks, self._steps)
        if len(self.seen) != expected or self._best is None:
            raise RunError(
                f"expected {expected} looks at the test set, found {len(self.seen)}: {self._path} doesn't belong to "
                "the checkpoint beside it; start the run anew in another folder"
            )
        return self._best

    def __call__(self, phase: int, done: int) -> None:
        """Look, if it is time, and remember the best. Raises RunError where that can't be written."""
        if done in self.seen:
            return  # by a run that was killed behind its last checkpoint, and comes by again
        super().__call__(phase, done)
        if done not in self.seen:
            return
        if self._best is None or self.seen[done] > self.seen[self._best]:
            self._best = done
            state = self._trained.state_dict()
            self._state = {name: value.detach().cpu().clone() for name, value in state.items()}
        content = {"seen": self.seen, "best": self._best, "state": self._state}
        write_sealed(self._path, lambda temporary: torch.save(content, temporary))

    def restore(self) -> None:
        """Give the student the state of the best look. Raises RunError where looks of the run are missing."""
        assert self.best in self.seen
        self._trained.load_state_dict(self._state)

    def _read(self) -> None:
        try:
            check_seal(self._path)
            content: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
            self.seen, self._best, self._state = content["seen"], content["best"], content["state"]
        except Exception as error:  # torch.load raises many kinds for a damaged file
            raise RequestError(
                f"{self._path} is damaged ({type(error).__name__}); start the run anew in another folder"
            ) from error
