"""The command ``netgraft train``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from .options import (
    SettingsCommand,
    given,
    image_size_option,
    output_options,
    run_options,
)
from .run import make_runner, run_job


def _recipe_of(args: Sequence[str]) -> tuple[str, type]:
    from netgraft.jobs.train import SupervisedTraining

    return "Hyper-parameters", SupervisedTraining


def _train_defaults() -> tuple[type, ...]:
    from netgraft.jobs.train import TrainJob
    from netgraft.training.runner import Runner

    return Runner, TrainJob


@click.command(cls=SettingsCommand, lookup=_recipe_of, defaults=_train_defaults)
@click.argument("model")
@click.option("--data", required=True, help="Name or path of labelled images.")
@image_size_option
@run_options
@output_options
def train(quiet: bool | None, as_json: bool | None, settings: dict[str, str], **options: Any) -> None:
    """Train MODEL, a timm name, on labelled images: a teacher for those who have none."""
    from netgraft.jobs.train import SupervisedTraining, TrainJob
    from netgraft.methods.hyperparameters import parse

    from .output import show_trained

    values: dict[str, Any] = {name: parse(SupervisedTraining, name, text) for name, text in settings.items()}
    runner = make_runner(options)
    job = TrainJob(recipe=SupervisedTraining(**values), runner=runner, **given(**options))
    run_job(job, quiet=quiet, as_json=as_json, show=show_trained)
