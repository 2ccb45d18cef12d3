"""What the commands that run models on images share: signals, progress, and the words at the end."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from netgraft.progress import in_training_steps
from netgraft.training.launchers import is_first_process

from .signals import interruptible

if TYPE_CHECKING:
    from netgraft.jobs.job import Job


def run_job(
    job: Job, *, quiet: bool | None, as_json: bool | None, show: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Carry out a job in front of a person or a program: progress, signals, and the result at the end; return it."""
    from .output import emit_json
    from .progress_display import open_reporter

    hush_libraries()
    silent = bool(quiet) or not is_first_process()
    with (
        open_reporter(sys.stderr, quiet=silent, json_lines=bool(as_json)) as reporter,
        interruptible(in_training_steps) as interruption,
    ):
        result = job.run(reporter, interruption.requested)
    if as_json and is_first_process():
        emit_json(result)
    elif not silent:
        show(result)
    return result


def hush_libraries() -> None:
    """Keep the chatter of libraries out of output that programs read."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning_fabric")
    # a 1x1 convolution's gradient has two equally good layouts
    warnings.filterwarnings("ignore", message="Grad strides do not match")
