"""The command ``netgraft export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .options import PATH, DeclaredCommand, flag, given, job_options


@click.command(cls=DeclaredCommand, declared=lambda: job_options("data_root"))
@click.argument("student", metavar="RUN|STUDENT")
@click.option("--to", required=True, help="onnx, or pt2 (torch.export).")
@click.option("--out", required=True, type=PATH, metavar="FILE", help="The file; it must not exist yet.")
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="Scale and normalise in the file: it then takes bytes, images x height x width x channels, resized already.",
)
@flag("--quiet", "Say nothing but the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(
    student: str, to: str, out: Path, with_preprocessing: bool, quiet: bool | None, as_json: bool, **options: Any
) -> None:
    """Write a student as one file that runs without netgraft, and prove that it answers like it.

    RUN is the folder of a run, STUDENT that of a student. Nothing is left behind where the file answers otherwise.
    """
    from netgraft.jobs.export import export_student

    from .output import emit, emit_json, emit_table
    from .progress_display import open_reporter

    with open_reporter(sys.stderr, quiet=bool(quiet), json_lines=as_json) as reporter:
        result = export_student(
            student, out, to=to, with_preprocessing=with_preprocessing, reporter=reporter, **given(options)
        )
    if as_json:
        emit_json(result)
        return
    emit(
        f"{out}: {result['bytes'] / 1e6:,.2f} MB, proven on {result['compared_on']} images "
        f"({result['photographs']} of the run's photographs): same top-1 on all, logits within "
        f"{result['difference']:.1g} of the largest (allowed: {result['tolerance']:g})"
    )
    rows = [
        [name, *(f"{result[f'{prefix}latency_ms_{batch}']:.2f}" for batch in (1, 64))]
        for name, prefix in ((result["runtime"], ""), ("PyTorch", "pytorch_"))
    ]
    emit_table(["", "ms at batch 1", "ms at batch 64"], rows)
