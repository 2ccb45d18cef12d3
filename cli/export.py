"""The command ``netgraft export``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .options import PATH, DeclaredCommand, flag, given, job_options


@click.command(cls=DeclaredCommand, declared=lambda: job_options("data_root"))
@click.argument("student", metavar="RUN|STUDENT")
@click.option("--to", required=True, help="onnx, pt2 (torch.export), openvino (IR) or litert (.tflite).")
@click.option(
    "--out",
    required=True,
    type=PATH,
    metavar="FILE",
    help="The file; it must not exist yet. Of openvino NAME.xml; the weights lie beside it, in NAME.bin.",
)
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="Scale and normalise in the file: it then takes bytes, images x height x width x channels, resized already.",
)
@click.option("--int8", is_flag=True, help="ONNX in 8 bits, with ranges found on the run's own images.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Of agreement with the float student that --int8 may lose; the most sensitive layers then stay in float.",
)
@click.option(
    "--train-steps",
    type=click.IntRange(min=0, max=10**6),
    default=0,
    help="Steps of distillation through fake quantisation in front of --int8, from the float student.  [0]",
)
@click.option("--data", help="Name or path of photographs for --int8, instead of the run's own.")
@flag("--quiet", "Say nothing but the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(
    student: str,
    to: str,
    out: Path,
    with_preprocessing: bool,
    int8: bool,
    max_drop: float | None,
    train_steps: int,
    data: str | None,
    quiet: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a student as one file that runs without netgraft, and prove that it answers like it.

    RUN is the folder of a run, STUDENT that of a student. Nothing is left behind where the file answers otherwise.
    """
    from netgraft.jobs.export import export_student, export_student_int8

    from .output import emit_json
    from .progress_display import open_reporter

    if int8 and to != "onnx":
        raise click.UsageError(f"--int8 goes with --to onnx, not {to}; leave one of them out")
    if not int8 and (max_drop is not None or data is not None or train_steps):
        raise click.UsageError("--max-drop, --train-steps and --data go with --int8; leave them out, or add it")
    with open_reporter(sys.stderr, quiet=bool(quiet), json_lines=as_json) as reporter:
        asked = {"with_preprocessing": with_preprocessing, "reporter": reporter, **given(options)}
        if int8:
            result = export_student_int8(student, out, max_drop=max_drop, train_steps=train_steps, data=data, **asked)
        else:
            result = export_student(student, out, to=to, **asked)
    if as_json:
        emit_json(result)
    elif int8:
        _show_int8(result)
    else:
        _show(result)


def _show(result: Mapping[str, Any]) -> None:
    from .output import emit

    emit(
        f"{' and '.join(result['files'])}: {result['bytes'] / 1e6:,.2f} MB, proven on {result['compared_on']} images "
        f"({result['photographs']} of the run's photographs): same top-1 on all, logits within "
        f"{result['difference']:.1g} of the largest (allowed: {result['tolerance']:g})"
        + ("" if result["batch"] is None else f"; the file takes {result['batch']} image at a time")
    )
    _show_times(result, {result["runtime"]: "", "PyTorch": "pytorch_"})


def _show_int8(result: Mapping[str, Any]) -> None:
    from .output import emit

    images = "photographs that took no part" if result["held_out"] else "photographs of the calibration itself"
    left = result["left_in_float"]
    share = result["bytes"] / result["float_bytes"]
    floats = f"{len(left)} of {result['layers']} layers in float: {', '.join(left)}" if left else "all layers in 8 bits"
    emit(
        f"{result['file']}: {result['bytes'] / 1e6:,.2f} MB, {share:.0%} of the float file, {floats}\n"
        f"the float student's answer on {result['agreement']:.2f} % of {result['agreement_images']} {images}, "
        f"calibrated on {result['calibration_images']}"
        + (f", {result['train_steps']:,} steps through fake quantisation" if result["train_steps"] else "")
    )
    _show_times(result, {"8 bits": "", "float": "float_"})


def _show_times(result: Mapping[str, Any], rows: Mapping[str, str]) -> None:
    from .output import emit_table

    cells = [
        [name, *(f"{result[f'{prefix}latency_ms_{batch}']:.2f}" for batch in (1, 64))] for name, prefix in rows.items()
    ]
    emit_table(["", "ms at batch 1", "ms at batch 64"], cells)
