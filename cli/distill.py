"""The command ``netgraft distill``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from .options import (
    PATH,
    SettingsCommand,
    flag,
    given,
    image_size_option,
    output_options,
    run_options,
    value_of,
)
from .run import make_runner, run_job


def _method_of(args: Sequence[str]) -> tuple[str, type]:
    from netgraft.jobs.distill import DistillJob
    from netgraft.methods.registry import find

    name = value_of(args, "--method") or DistillJob.method
    method = find(name)
    return f"Hyper-parameters of {name}, over the preset's ({', '.join(method.presets)})", method


def _distill_defaults() -> tuple[type, ...]:
    from netgraft.jobs.distill import DistillJob
    from netgraft.training.runner import Runner

    return Runner, DistillJob


@click.command(cls=SettingsCommand, lookup=_method_of, defaults=_distill_defaults)
@click.option("--data", help="Name or path of the images: digits, cifar10, a folder, a tar archive, ...")
@click.option("--teacher", help="A timm model, hf-hub:... or local-dir:...; the data set's own by default.")
@click.option("--student", help="A timm model; the data set's own by default.")
@click.option("--teacher-weights", type=PATH, help="safetensors file or checkpoint; timm's weights by default.")
@image_size_option
@click.option("--shots", type=int, help="Images a class; 10 unless --images or --subset is given.")
@click.option("--images", type=int, help="Images in all, regardless of class.")
@click.option("--subset", type=PATH, help="A subset file to use instead of drawing one.")
@click.option("--subset-seed", type=int, help="Of the drawn subset; --seed by default.")
@click.option("--eval-data", help="Labelled test images, if not those of --data.")
@click.option("--method", help="See netgraft methods; several joined by + are trained at once.")
@click.option("--preset", help="Of the method.")
@click.option("--views", help="View policy instead of the preset's: rich, crop, plain.")
@click.option("--init", help="How the student starts: auto, random or slice (of the teacher).")
@click.option("--inherit", help="Copy front blocks that are built alike: auto or none.")
@click.option("--blocks", type=int, help="Merge the paired blocks to so many, of even cost.")
@flag("--labeled", "Give the images' labels to the method.")
@click.option("--keep-answers", type=PATH, help="Folder that keeps the teacher's test answers for other runs.")
@run_options
@output_options
def distill(quiet: bool | None, as_json: bool | None, **options: Any) -> None:
    """Turn a teacher into a smaller student, from a few images."""
    from netgraft.jobs.distill import DistillJob

    from .output import show_distilled

    runner = make_runner(options)
    run_job(DistillJob(runner=runner, **given(**options)), quiet=quiet, as_json=as_json, show=show_distilled)
