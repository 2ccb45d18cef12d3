"""Image files that tests write, and the preprocessing that they are read with."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from netgraft.data.image_set import DataSource

CONFIG: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.49, 0.48, 0.45),
    "std": (0.25, 0.24, 0.26),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def content(value: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Return an encoded image whose pixels all have the grey level ``value``."""
    stream = io.BytesIO()
    Image.new("L", (6, 5), value).convert(mode).save(stream, kind)
    return stream.getvalue()


def write_files(folder: Path, names: Iterable[str]) -> Path:
    """Write an image a name; its grey level is its place in the list."""
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(value))
    return folder


def levels(source: DataSource) -> list[int]:
    """Return the grey level of each training image."""
    return [int(np.array(image).max()) for image in source.train.load_many(range(len(source.train)))]
