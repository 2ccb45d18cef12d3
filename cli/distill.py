"""The command ``netgraft distill``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netgraft.training.launchers import is_first_process

from .options import HyperparameterCommand, config_option, given, output_options, value_of
from .report import add_report
from .run import run_job

if TYPE_CHECKING:
    from netgraft.jobs.distill import DistillJob
    from netgraft.options import Option


def _options() -> Iterable[Option]:
    from netgraft.jobs.options import DistillOptions, ordered

    return ordered(DistillOptions).values()


def _method_of(args: Sequence[str]) -> tuple[str, type]:
    from netgraft.jobs.options import DistillOptions
    from netgraft.methods.registry import find

    named = value_of(args, "--method")
    config = value_of(args, "--config")
    if named is None and config is not None:
        named = _read(Path(config)).get("method")
    name = named or DistillOptions.method
    method = find(name)
    return f"Hyper-parameters of {name}, over the preset's ({', '.join(method.presets)})", method


def _read(config: Path) -> dict[str, Any]:
    from netgraft.jobs.config_file import read
    from netgraft.jobs.options import DistillOptions

    return read(config, DistillOptions)


@click.command(cls=HyperparameterCommand, declared=_options, lookup=_method_of)
@config_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, with time and memory; write nothing.")
@output_options
def distill(
    config: Path | None,
    dry_run: bool,
    quiet: bool | None,
    as_json: bool | None,
    settings: Mapping[str, str],
    **options: Any,
) -> None:
    """Turn a teacher into a smaller student, from a few images."""
    from netgraft.deriving.budget import series_of
    from netgraft.jobs.config_file import overridden
    from netgraft.jobs.distill import DistillJob
    from netgraft.jobs.prepared_derivation import LIBRARY
    from netgraft.options import build

    from .output import show_distilled

    asked = overridden({} if config is None else _read(config), {**given(options), "settings": settings})
    series = series_of(asked["keep"]) if "keep" in asked else (None,)
    for budget in series:
        if len(series) > 1:
            asked["keep"] = budget
            if options["out"] is not None:
                asked["out"] = options["out"] / str(budget)
        job = build(DistillJob, asked)
        if dry_run:
            _preview(job, quiet=bool(quiet), as_json=bool(as_json))
            continue
        result = run_job(job, quiet=quiet, as_json=as_json, show=show_distilled)
        if is_first_process():
            # a finished run says where it lay when it was made
            add_report(Path(asked.get("out", result["run_folder"])))
        library = Path(result["run_folder"]) / LIBRARY
        if len(series) > 1 and library.exists():
            # tried once, the places serve all budgets; even widths ask nobody
            asked["library"] = library


def _preview(job: DistillJob, *, quiet: bool, as_json: bool) -> None:
    """Print what a job would do."""
    from netgraft.experiments.preview import preview

    from .output import emit_json, show_preview
    from .progress_display import open_reporter
    from .run import hush_libraries

    hush_libraries()
    with open_reporter(sys.stderr, quiet=quiet, json_lines=as_json) as reporter:
        [found] = [look(job) for look in reporter.track([preview], total=1, name="looking at data and models")]
    if as_json:
        emit_json(vars(found))
    else:
        show_preview(found)
