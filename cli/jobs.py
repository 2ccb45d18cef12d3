"""The commands that run models on images: distill, train, evaluate."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from netgraft.reporting import Reporter

from .options import (
    PATH,
    SettingsCommand,
    data_options,
    device_option,
    flag,
    given,
    image_size_option,
    output_options,
    run_options,
    value_of,
)


class Job(Protocol):
    """A job of :mod:`netgraft.jobs`."""

    def run(self, reporter: Reporter | None = None, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Do it and return the result."""
        ...


def is_first_process() -> bool:
    """Whether this process speaks: with several devices, each further process runs the same command again."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def _method_of(args: Sequence[str]) -> tuple[str, type]:
    from netgraft.jobs import DistillJob
    from netgraft.methods import find

    name = value_of(args, "--method") or DistillJob.method
    entry = find(name)
    return f"Hyper-parameters of {name}, over the preset's ({', '.join(entry.presets)})", entry.kind


def _recipe_of(args: Sequence[str]) -> tuple[str, type]:
    from netgraft.training import SupervisedTraining

    return "Hyper-parameters", SupervisedTraining


def _distill_defaults() -> tuple[type, ...]:
    from netgraft.jobs import DistillJob
    from netgraft.runner import Runner

    return Runner, DistillJob


def _train_defaults() -> tuple[type, ...]:
    from netgraft.jobs import TrainJob
    from netgraft.runner import Runner

    return Runner, TrainJob


def _runner(options: dict[str, Any]) -> Any:
    """Take the device options out of ``options`` and make a runner of them."""
    from netgraft.runner import Runner

    names = ("accelerator", "devices", "precision", "checkpoint_seconds", "cache_gib")
    return Runner(**given(**{name: options.pop(name) for name in names}))


def _run(job: Job, *, quiet: bool | None, as_json: bool | None, show: Callable[[dict[str, Any]], None]) -> None:
    from netgraft.reporters import open_reporter

    from .interrupt import heeding_signals
    from .output import emit_json

    _hush_libraries()
    silent = bool(quiet) or not is_first_process()
    with (
        open_reporter(sys.stderr, quiet=silent, json_lines=bool(as_json)) as speaker,
        heeding_signals(speaker) as (reporter, interruption),
    ):
        result = job.run(reporter, interruption.requested)
        _leave_processes()
    if as_json and is_first_process():
        emit_json(result)
    elif not silent:
        show(result)


def _leave_processes() -> None:
    """End the threads of a run on several devices: interpreters that end with them running abort now and then."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _hush_libraries() -> None:
    """Keep the chatter of libraries out of output that programs read."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning_fabric")
    # a 1x1 convolution's gradient has two equally good layouts
    warnings.filterwarnings("ignore", message="Grad strides do not match")


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
    from netgraft.jobs import DistillJob

    from .output import show_distilled

    runner = _runner(options)
    _run(DistillJob(runner=runner, **given(**options)), quiet=quiet, as_json=as_json, show=show_distilled)


@click.command(cls=SettingsCommand, lookup=_recipe_of, defaults=_train_defaults)
@click.argument("model")
@click.option("--data", required=True, help="Name or path of labelled images.")
@image_size_option
@run_options
@output_options
def train(quiet: bool | None, as_json: bool | None, settings: dict[str, str], **options: Any) -> None:
    """Train MODEL, a timm name, on labelled images: a teacher for those who have none."""
    from netgraft.hyperparameters import parse
    from netgraft.jobs import TrainJob
    from netgraft.training import SupervisedTraining

    from .output import show_trained

    values: dict[str, Any] = {name: parse(SupervisedTraining, name, text) for name, text in settings.items()}
    runner = _runner(options)
    job = TrainJob(recipe=SupervisedTraining(**values), runner=runner, **given(**options))
    _run(job, quiet=quiet, as_json=as_json, show=show_trained)


@click.command()
@click.argument("model")
@click.option("--data", required=True, help="Name or path of labelled images; their test partition, if there is one.")
@click.option("--weights", "--teacher-weights", "weights", type=PATH, help="safetensors file or checkpoint for MODEL.")
@image_size_option
@data_options
@device_option
@flag("--quiet", "Say nothing but the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    model: str,
    data: str,
    weights: Path | None,
    image_size: int | None,
    data_root: Path | None,
    download: bool | None,
    accelerator: str | None,
    quiet: bool | None,
    as_json: bool,
) -> None:
    """Measure the accuracy of MODEL: a student folder, a timm name, hf-hub:... or local-dir:..."""
    from netgraft.evaluation import evaluate as measure
    from netgraft.reporters import open_reporter

    from .output import count, emit, emit_json

    options = given(
        weights=weights, image_size=image_size, data_root=data_root, download=download, accelerator=accelerator
    )
    with open_reporter(sys.stderr, quiet=bool(quiet), json_lines=as_json) as reporter:
        result = measure(model, data, reporter=reporter, **options)
    if as_json:
        emit_json(result)
    else:
        emit(
            f"{model}: top-1 {result['top1']:.2f} % on {count(result['images'])} images of {result['data']}, "
            f"{count(result['parameters'])} parameters, {count(result['macs'])} MACs"
        )
