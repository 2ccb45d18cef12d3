"""A run's losses, rates, phases and final figures in a log that other programs show, by Lightning Fabric's loggers."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import CSVLogger, Logger, TensorBoardLogger

from netgraft.errors import RunError

FOLDER = "log"
"""In a run folder."""

FIGURES = (
    *("top1", "teacher_top1", "student_top1", "gap", "agreement", "estimated_gap"),
    *("parameters", "macs", "latency_ms_1", "latency_ms_64", "train_seconds"),
)
"""Of a result, where it has them."""

CSV_FILE = "metrics.csv"


class RunLog:
    """An open log.

    Args:
        kind: Of :data:`netgraft.training.options.LOGS`.
        folder: Of the run.
        steps: How many each phase takes.
        upto: Steps of the whole plan that are done: what an interrupted run logged behind them is dropped.

    Raises:
        RunError: It can't be opened.
    """

    def __init__(self, kind: str, folder: Path, *, steps: Sequence[int], upto: int) -> None:
        self._before = [sum(steps[:number]) for number in range(len(steps))]
        with _explained(folder):
            self._logger = _opened(kind, folder, upto)

    def add(self, row: Mapping[str, Any]) -> None:
        """Log a line of :class:`netgraft.training.metrics_log.MetricsLog`: loss, terms, rate and phase (from 1).

        Raises:
            RunError: It can't be written.
        """
        terms = {name: value for name, value in row.items() if name not in {"phase", "step", "lr"}}
        metrics = {
            "loss": sum(terms.values()),
            **{f"loss/{name}": value for name, value in terms.items()},
            "lr": row["lr"],
            "phase": row["phase"] + 1,
        }
        with _explained(self._logger.root_dir):
            self._logger.log_metrics(metrics, self._before[row["phase"]] + row["step"])

    def close(self) -> None:
        """Write what is left. Raises RunError where that can't be done."""
        with _explained(self._logger.root_dir):
            self._logger.finalize("success")


def log_figures(kind: str | None, folder: Path, result: Mapping[str, Any]) -> None:
    """Log the figures of a result, at its last step.

    Raises:
        RunError: They can't be written.
    """
    if kind is None:
        return
    figures = {f"final/{name}": result[name] for name in FIGURES if result.get(name) is not None}
    with _explained(folder):
        logger = _opened(kind, folder, result["steps"])
        logger.log_metrics(figures, result["steps"])
        logger.finalize("success")


def _opened(kind: str, folder: Path, upto: int) -> Logger:
    if kind == "csv":
        return _opened_csv(folder / FOLDER, upto)
    if kind == "tensorboard":
        # events of these steps and later ones in earlier files count no more
        return TensorBoardLogger(folder, name=FOLDER, version="tensorboard", purge_step=upto + 1)
    return WandbLog(folder / FOLDER, name=folder.resolve().name)


def _opened_csv(folder: Path, upto: int) -> CSVLogger:
    """Open a log with the rows that it has already: the logger of its own begins an empty one."""
    path, rows = folder / CSV_FILE, []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            # of a row that a kill cut off there may be no step
            rows = [
                row for row in csv.DictReader(file) if (row.get("step") or "").isdigit() and int(row["step"]) <= upto
            ]
        path.unlink()
    # each line is written at once
    logger = CSVLogger(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)
    for row in rows:
        known = {name: value for name, value in row.items() if value and name != "step"}
        logger.experiment.log_metrics(known, int(row["step"]))
    logger.experiment.save()
    return logger


class WandbLog(Logger):
    """Weights & Biases; its own logger for Fabric imports another distribution of Lightning.

    Args:
        folder: For its files, and the run's identifier there, by which a resumed run goes on in the same log.
        name: That people read.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "wandb-id"
        if not kept.exists():
            kept.write_text(secrets.token_hex(8), encoding="ascii")
        self._folder, self._name = folder, name
        self._run = wandb.init(
            project="netgraft",
            name=name,
            dir=folder,
            id=kept.read_text(encoding="ascii").strip(),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )

    @property
    def name(self) -> str:
        """That people read."""
        return self._name

    @property
    def version(self) -> str:
        """Identifier of the run there."""
        return str(self._run.id)

    @property
    def root_dir(self) -> str:
        """Where its files lie."""
        return str(self._folder)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log values; of steps that are logged already nothing is taken again."""
        self._run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log settings."""
        self._run.config.update(dict(params), allow_val_change=True)

    def finalize(self, status: str) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if status == "success" else 1)


@contextmanager
def _explained(where: object) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # full disks, servers, accounts: loggers raise many kinds
        said = " ".join(str(error).split())[:300]
        raise RunError(f"could not write the log of {where}: {said}; see to it, or go on without --log") from error
