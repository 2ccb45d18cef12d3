"""What jobs have in common: they claim a run folder, train, and write a result."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from netgraft.data.threads import computing_with
from netgraft.errors import RequestError, RunError
from netgraft.evaluation.environment import environment
from netgraft.files import write_text
from netgraft.jobs import config_file
from netgraft.jobs.chosen_threads import ChosenThreads
from netgraft.jobs.options import JobOptions
from netgraft.jobs.run_folder import ASKED, RESULT, RunFolder, default_folder
from netgraft.progress import ProgressReporter, SilentReporter
from netgraft.training.parallel import told_of_deaths
from netgraft.training.run_log import log_figures
from netgraft.training.runner import Runner

OPENING = "opening images and models"


class PreparedJob(Protocol):
    """A job that knows all that it will do, and has written nothing yet."""

    @property
    def runner(self) -> Runner:
        """Trains."""
        ...

    @property
    def timed_model(self) -> nn.Module:
        """A model whose forwards tell how many threads are fastest."""
        ...

    @property
    def name(self) -> str:
        """Of the folder under ``runs/``, where none is asked for."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """What was asked for, with a ``fingerprint`` of everything that decides the result."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a person is told before it trains."""
        ...

    def begin(self, folder: Path) -> None:
        """Write what is known before training; the first process alone."""
        ...

    def train(self, folder: Path, *, resume: bool, reporter: ProgressReporter, stop: Callable[[], bool] | None) -> None:
        """Train, in every process."""
        ...

    def finish(self, folder: Path, reporter: ProgressReporter) -> dict[str, Any]:
        """Evaluate and save; return what the result says besides the configuration; the first process alone."""
        ...


class Job(JobOptions, ABC):
    """Carries out what is asked for.

    Attributes:
        command: Of the command line, that asks for such jobs.
    """

    command: ClassVar[str]

    @abstractmethod
    def prepare(self) -> PreparedJob:
        """Check everything that is asked for, and decide everything; write nothing.

        Raises:
            RequestError: Something asked for is wrong.
        """

    @property
    @abstractmethod
    def hyperparameters(self) -> Mapping[str, str]:
        """Those that were asked for, as text."""

    def run(self, reporter: ProgressReporter | None = None, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Train, evaluate, save; return what ``result.json`` holds, in every process.

        Args:
            reporter: Told what happens.
            stop: Asked before each step whether to save and leave.

        Raises:
            RequestError: Something asked for is wrong; nothing has been written.
            RunError: Something failed while running; the last checkpoint is kept.
            InterruptedRunError: ``stop`` said yes; the run is saved.
        """
        started = time.monotonic()
        reporter = reporter or SilentReporter()
        # large archives and models take their time
        [prepared] = [prepare() for prepare in reporter.track([self.prepare], total=1, name=OPENING)]
        fabric = prepared.runner.fabric
        with told_of_deaths(), claimed(prepared, self.out, resume=self.resume) as (folder, finished, threads):
            reporter = reporter if fabric.is_global_zero else SilentReporter()
            if finished is not None:
                reporter.note(f"{folder} is finished; nothing was left to do")
                return finished
            if fabric.is_global_zero:
                prepared.begin(folder)
                content = config_file.written(self, self.hyperparameters, command=self.command)
                write_text(folder / ASKED, content)
            for note in prepared.notes:
                reporter.note(note)
            if threads.note is not None:
                reporter.note(threads.note)
            with computing_with(threads.number):
                prepared.train(folder, resume=self.resume, reporter=reporter, stop=stop)
                result: dict[str, Any] = {}
                if fabric.is_global_zero:
                    result = {
                        **prepared.config,
                        **prepared.finish(folder, reporter),
                        **environment(fabric.device),
                        "seconds": round(time.monotonic() - started, 2),
                        "run_folder": str(folder),
                    }
                    RunFolder(folder).write(RESULT, result)
                    log_figures(self.compute.log, folder, result)
            return fabric.broadcast(result)

    def _runner(self) -> Runner:
        return Runner(**vars(self.compute), seed=self.seed)


@contextmanager
def claimed(
    prepared: PreparedJob, out: Path | None, *, resume: bool
) -> Iterator[tuple[Path, dict[str, Any] | None, ChosenThreads]]:
    """Start the processes and let the first hold the folder; all learn where it is and what came out already.

    Every process raises what the first one met: none may wait for one that has left.

    Yields:
        The folder, what came out already, and with how many threads to compute.
    """
    fabric = prepared.runner.fabric
    config = prepared.config
    found: tuple[str, dict[str, Any] | None, ChosenThreads] = ("", None, ChosenThreads(torch.get_num_threads()))
    failure: RequestError | RunError | None = None
    with ExitStack() as held:
        if fabric.is_global_zero:
            try:
                path = out or default_folder(prepared.name, resume=resume, fingerprint=config["fingerprint"])
                folder = RunFolder(path)
                held.enter_context(folder.lock())
                begun = folder.config()
                if begun is not None:
                    threads = ChosenThreads.of_begun(begun)
                elif fabric.device.type == "cpu" and fabric.world_size == 1:
                    threads = ChosenThreads.at_start(prepared.timed_model)
                else:  # a GPU needs few, and several processes share the cores as they are told
                    threads = found[2]
                folder.claim(config if begun is not None else {**config, "threads": threads.number}, resume=resume)
                found = (str(path), folder.finished(), threads)
            except (RequestError, RunError) as error:
                failure = error
        found, failure = fabric.broadcast((found, failure))
        if failure is not None:
            raise failure
        yield Path(found[0]), found[1], found[2]
