"""How many threads a run computes with: as many as it began with, or as are fastest at its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.modules import eval_mode
from netgraft.training.precision import timed_images
from netgraft.training.threads import fastest_number, number_is_said

MOST = 1024
"""Threads that a configuration may ask for; more are a damaged one."""


@dataclass(frozen=True)
class ChosenThreads:
    """A number of threads; the last bits of weights depend on it.

    Attributes:
        number: Threads.
        note: Why, for people; None where it goes without saying.
    """

    number: int
    note: str | None = None

    @classmethod
    def at_start(cls, model: nn.Module) -> ChosenThreads:
        """Take what the environment says, or else what is fastest for a model on the CPU."""
        every = torch.get_num_threads()
        if every == 1 or number_is_said():
            return cls(every)
        size = resolve_model_data_config(model)["input_size"]
        with eval_mode(model):
            number, why = fastest_number(model, torch.zeros(timed_images(size), *size))
        return cls(number, f"threads {number}: {why}")

    @classmethod
    def of_begun(cls, config: Mapping[str, Any]) -> ChosenThreads:
        """Take those that a run began with, so that it keeps its bits; what the environment says is obeyed.

        Args:
            config: Of the run's folder. An older one says nothing of threads: its run began with all that there were.
        """
        every, began = torch.get_num_threads(), config.get("threads")
        if type(began) is not int or not 1 <= began <= MOST or began == every:
            return cls(every)
        if number_is_said():
            return cls(
                every,
                f"threads {every}, as the environment says: the run began with {began}, so the last bits of its "
                "weights may differ from those of a run that never stopped",
            )
        return cls(began, f"threads {began}: the run began with as many")
