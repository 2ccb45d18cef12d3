"""The command ``netgraft train``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import HyperparameterCommand, config_option, given, output_options
from .run import run_job

if TYPE_CHECKING:
    from netgraft.options import Option


def _options() -> Iterable[Option]:
    from netgraft.jobs.options import ordered
    from netgraft.jobs.train import TrainJob

    # what must be given may stand in a file
    known = [option for name, option in ordered(TrainJob).items() if name != "model"]
    return [replace(option, default=None) if option.required else option for option in known]


def _recipe_of(args: Sequence[str]) -> tuple[str, type]:
    from netgraft.jobs.train import SupervisedTraining

    return "Hyper-parameters", SupervisedTraining


@click.command(cls=HyperparameterCommand, declared=_options, lookup=_recipe_of)
@click.argument("model", required=False)
@config_option
@output_options
def train(
    model: str | None,
    config: Path | None,
    quiet: bool | None,
    as_json: bool | None,
    settings: Mapping[str, str],
    **options: Any,
) -> None:
    """Train MODEL, a timm name, on labelled images: a teacher for those who have none."""
    from netgraft.errors import RequestError
    from netgraft.jobs.config_file import SETTINGS, overridden, read
    from netgraft.jobs.train import SupervisedTraining, TrainJob
    from netgraft.methods.hyperparameters import parse
    from netgraft.options import build

    from .output import show_trained

    own = {**given({"model": model, **options}), SETTINGS: settings}
    asked = overridden({} if config is None else read(config, TrainJob), own)
    if missing := [name for flag, name in (("model", "MODEL"), ("data", "--data")) if flag not in asked]:
        raise RequestError(
            f"expected a model and labelled images, got no {' and no '.join(missing)}; give MODEL and --data FOLDER, "
            "or --config FILE, which has them"
        )
    recipe: dict[str, Any] = {name: parse(SupervisedTraining, name, text) for name, text in asked[SETTINGS].items()}
    job = build(TrainJob, {**asked, "recipe": SupervisedTraining(**recipe)})
    run_job(job, quiet=quiet, as_json=as_json, show=show_trained)
