"""The command ``netgraft evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .options import PATH, DeclaredCommand, flag, given, job_options

DECLARED = ("image_size", "num_classes", "class_map", "data_root", "download", "skip_broken", "accelerator")


@click.command(cls=DeclaredCommand, declared=lambda: job_options(*DECLARED))
@click.argument("model")
@click.option("--data", required=True, help="Name or path of labelled images; their test partition, if there is one.")
@click.option("--weights", "--teacher-weights", "weights", type=PATH, help="safetensors file or checkpoint for MODEL.")
@flag("--quiet", "Say nothing but the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(model: str, data: str, weights: Path | None, quiet: bool | None, as_json: bool, **options: Any) -> None:
    """Measure the accuracy of MODEL: a student folder, a timm name, hf-hub:... or local-dir:..."""
    from netgraft.jobs.evaluate import evaluate as measure

    from .output import count, emit, emit_json
    from .progress_display import open_reporter

    with open_reporter(sys.stderr, quiet=bool(quiet), json_lines=as_json) as reporter:
        result = measure(model, data, weights=weights, reporter=reporter, **given(options))
    if as_json:
        emit_json(result)
    else:
        emit(
            f"{model}: top-1 {result['top1']:.2f} % on {count(result['images'])} images of {result['data']} "
            f"({count(result['classes_seen'])} classes, matched by {result['matched_by']}), "
            f"{count(result['parameters'])} parameters, {count(result['macs'])} MACs"
        )
