"""The command ``netgraft predict``."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, DeclaredCommand, flag, given, job_options

if TYPE_CHECKING:
    from netgraft.jobs.predict import Prediction

COLUMNS = ("image", "class", "confidence")


@click.command(cls=DeclaredCommand, declared=lambda: job_options("image_size", "skip_broken", "accelerator"))
@click.argument("model")
@click.argument("folder", type=PATH)
@click.option("--weights", "--teacher-weights", "weights", type=PATH, help="safetensors file or checkpoint for MODEL.")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes an image, a row each.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with the header image,class,confidence.")
@flag("--quiet", "Say nothing but the answers.")
def predict(
    model: str, folder: Path, weights: Path | None, top: int, as_csv: bool, quiet: bool | None, **options: Any
) -> None:
    """Answer the photographs in FOLDER and below by the names of MODEL's classes.

    MODEL is a run's folder, a student's or a model's, a timm name, hf-hub:... or local-dir:... A class whose name isn't
    known is called by its number, from 0. The confidence is the probability that the model gives its answer.
    """
    from netgraft.jobs.predict import predict as answer

    from .output import emit, emit_table
    from .progress_display import open_reporter

    with open_reporter(sys.stderr, quiet=bool(quiet)) as reporter:
        answers = answer(model, folder, top=top, weights=weights, reporter=reporter, **given(options))
    if as_csv:
        emit(_as_csv(_rows(answers, "{:.4f}")))
    else:
        emit_table(COLUMNS, _rows(answers, "{:.1%}"))


def _rows(answers: Sequence[Prediction], confidence: str) -> list[list[str]]:
    return [
        [answer.image, name, confidence.format(share)]
        for answer in answers
        for name, share in zip(answer.classes, answer.confidences, strict=True)
    ]


def _as_csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    return text.getvalue().rstrip("\n")
