"""``netgraft export``: a run's student -> a file that runs without netgraft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm

from netgraft.errors import RequestError
from netgraft.exporting.export import check_free, export
from netgraft.exporting.formats import find_format
from netgraft.jobs.photographs import find_photographs
from netgraft.jobs.run_folder import RunFolder
from netgraft.models.loading import is_folder
from netgraft.models.students import load_student
from netgraft.progress import ProgressReporter, SilentReporter

MOST_PHOTOGRAPHS = 64
"""Of a run, through model and file."""


def export_student(
    folder: str,
    out: Path,
    *,
    to: str,
    with_preprocessing: bool = False,
    data_root: Path | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Export the student of a folder, prove it on the run's photographs too, and measure both.

    Args:
        folder: Of a run, a student or a trained model.
        out: The file, which must not exist.
        to: A format's name.
        with_preprocessing: As for :func:`netgraft.export`.
        data_root: Folder of the named data sets.
        reporter: Is told of each part.

    Returns:
        ``model``, ``file``, ``format``, ``bytes``, ``compared_on`` (images), ``photographs`` (of them),
        ``difference`` and ``tolerance`` (parts of the largest logit), ``runtime``, and median milliseconds of a batch
        ``latency_ms_1`` and ``latency_ms_64`` of the file, beside ``pytorch_latency_ms_1`` and ``..._64``.

    Raises:
        RequestError: No such student or format, or a path that can't be written to.
        RunError: The model can't be exported, or the export answers otherwise.
    """
    reporter = reporter or SilentReporter()
    find_format(to)
    check_free(out)
    if not is_folder(folder):
        raise RequestError(f"expected the folder of a run or of a student, got {folder}, which is none; check the path")
    model = load_student(folder)
    found = find_photographs(Path(folder), data_root=data_root)
    few = [] if found is None else found.few[:MOST_PHOTOGRAPHS]
    reporter.note(f"exporting {folder} to {to}" + ("" if few else "; no photographs of a run were found"))
    exported = export(
        model,
        out,
        to=to,
        with_preprocessing=with_preprocessing,
        images=few,
        license=license_of(Path(folder)),
    )
    times = exported.latencies()
    return {
        "model": folder,
        "file": str(out),
        "format": to,
        "with_preprocessing": with_preprocessing,
        "bytes": exported.bytes,
        "compared_on": exported.proof.images,
        "photographs": len(few),
        "difference": exported.proof.difference,
        "tolerance": exported.proof.tolerance,
        "runtime": exported.runtime,
        **{f"latency_ms_{batch}": ms for batch, ms in times["export"].items()},
        **{f"pytorch_latency_ms_{batch}": ms for batch, ms in times["pytorch"].items()},
    }


def license_of(folder: Path) -> str | None:
    """Return the licence of the weights that a run's student came from, if timm names one for them."""
    config = RunFolder(folder).config() or {}
    options, teacher = config.get("options"), config.get("teacher")
    # of a run that doesn't say whose weights its teacher had, nothing is known
    if not isinstance(options, dict) or "teacher_weights" in options or not isinstance(teacher, str):
        return None
    known = timm.get_pretrained_cfg(teacher) if timm.is_model(teacher) else None
    return None if known is None else known.license
