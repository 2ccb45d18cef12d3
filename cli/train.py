"""The command ``netgraft train``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .options import HyperparameterCommand, given, output_options
from .run import run_job

if TYPE_CHECKING:
    from netgraft.options import Option


def _options() -> Iterable[Option]:
    from netgraft.jobs.options import ordered
    from netgraft.jobs.train import TrainJob

    return [option for name, option in ordered(TrainJob).items() if name != "model"]


def _recipe_of(args: Sequence[str]) -> tuple[str, type]:
    from netgraft.jobs.train import SupervisedTraining

    return "Hyper-parameters", SupervisedTraining


@click.command(cls=HyperparameterCommand, declared=_options, lookup=_recipe_of)
@click.argument("model")
@output_options
def train(model: str, quiet: bool | None, as_json: bool | None, settings: Mapping[str, str], **options: Any) -> None:
    """Train MODEL, a timm name, on labelled images: a teacher for those who have none."""
    from netgraft.jobs.train import SupervisedTraining, TrainJob
    from netgraft.methods.hyperparameters import parse
    from netgraft.options import build

    from .output import show_trained

    values: dict[str, Any] = {name: parse(SupervisedTraining, name, text) for name, text in settings.items()}
    job = build(TrainJob, {**given(options), "model": model, "recipe": SupervisedTraining(**values)})
    run_job(job, quiet=quiet, as_json=as_json, show=show_trained)
