"""Who has started the processes of a run: the run itself, or torchrun or srun in front of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """A start of several processes, as one of them sees it.

    Attributes:
        by: ``torchrun`` or ``srun``.
        count: Processes on all nodes.
        nodes: Machines.
        rank: Of this process among all (0-based).
    """

    by: str
    count: int
    nodes: int
    rank: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch | None:
        """Read what a launcher has said; None where this process was started alone.

        An allocation of SLURM names its tasks in every shell of it and in its batch script too, where nobody has
        started them: only in what ``srun`` has started is there a step.
        """
        by = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "srun"
        if by == "srun" and environment.get("SLURM_JOB_NAME") in INTERACTIVE:
            return None
        try:
            count, nodes, rank = (int(environment[name]) for name in _NAMES[by])
        except (KeyError, ValueError):
            return None
        return cls(by, count, nodes, rank) if count > 1 else None


_NAMES = {
    # https://docs.pytorch.org/docs/stable/elastic/run.html
    "torchrun": ("WORLD_SIZE", "GROUP_WORLD_SIZE", "RANK"),
    # https://slurm.schedmd.com/srun.html
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_PROCID"),
}

INTERACTIVE = {"bash", "interactive"}
"""Names of jobs that are one shell, however many tasks they were given."""


def is_first_process() -> bool:
    """Whether this process speaks for all: with several devices, each further one runs the same command."""
    launch = Launch.of(os.environ)
    if launch is not None:
        return launch.rank == 0
    return int(os.environ.get("LOCAL_RANK") or 0) == 0
