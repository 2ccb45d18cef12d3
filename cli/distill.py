"""The command ``netgraft distill``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import HyperparameterCommand, given, output_options, value_of
from .report import add_report
from .run import is_first_process, run_job

if TYPE_CHECKING:
    from netgraft.options import Option


def _options() -> Iterable[Option]:
    from netgraft.jobs.options import DistillOptions, ordered

    return ordered(DistillOptions).values()


def _method_of(args: Sequence[str]) -> tuple[str, type]:
    from netgraft.jobs.options import DistillOptions
    from netgraft.methods.registry import find

    name = value_of(args, "--method") or DistillOptions.method
    method = find(name)
    return f"Hyper-parameters of {name}, over the preset's ({', '.join(method.presets)})", method


@click.command(cls=HyperparameterCommand, declared=_options, lookup=_method_of)
@output_options
def distill(quiet: bool | None, as_json: bool | None, settings: Mapping[str, str], **options: Any) -> None:
    """Turn a teacher into a smaller student, from a few images."""
    from netgraft.deriving.budget import series_of
    from netgraft.jobs.distill import DistillJob
    from netgraft.jobs.prepared_derivation import LIBRARY
    from netgraft.options import build

    from .output import show_distilled

    asked = {**given(options), "settings": settings}
    series = series_of(asked["keep"]) if "keep" in asked else (None,)
    for budget in series:
        if len(series) > 1:
            asked["keep"] = budget
            if options["out"] is not None:
                asked["out"] = options["out"] / str(budget)
        result = run_job(build(DistillJob, asked), quiet=quiet, as_json=as_json, show=show_distilled)
        if is_first_process():
            # a finished run says where it lay when it was made
            add_report(Path(asked.get("out", result["run_folder"])))
        library = Path(result["run_folder"]) / LIBRARY
        if len(series) > 1 and library.exists():
            # tried once, the places serve all budgets; even widths ask nobody
            asked["library"] = library
