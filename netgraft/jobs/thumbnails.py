"""Small copies of the images on which both networks differ most, beside a run's result: its report shows them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from netgraft.data.image_set import ImageSet
from netgraft.errors import RunError
from netgraft.files import write_atomically

FOLDER = "thumbnails"
"""In a run folder; without it a report shows names alone."""

SIDE = 160
"""Pixels of the longer side, at most."""


def thumbnail(folder: Path, number: int) -> Path:
    """Return where the copy of the ``number``-th image of ``differ_most`` lies, from 0."""
    return folder / FOLDER / f"{number}.jpg"


def write_thumbnails(folder: Path, images: ImageSet, positions: Sequence[int]) -> None:
    """Write copies without what files say besides of where and when they were taken.

    Args:
        folder: Of the run.
        images: That measured the student.
        positions: Of those in ``differ_most``, in its order.

    Raises:
        RunError: One can't be written.
    """
    if not positions:
        return
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"could not write {folder / FOLDER}: {error.strerror}; go on with --resume") from error
    for number, image in enumerate(images.load_many(positions)):
        small = Image.new("RGB", image.size)
        small.paste(image.convert("RGB"))
        small.thumbnail((SIDE, SIDE))
        write_atomically(thumbnail(folder, number), partial(small.save, format="JPEG", quality=90))
