"""A run's photographs, found again: those that its student learned from, and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from netgraft.data.image_set import DataSource, ImageSet
from netgraft.data.sources import open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.errors import RequestError
from netgraft.jobs.run_folder import RunFolder

SUBSET = "subset.json"


@dataclass(frozen=True)
class Photographs:
    """Of a run.

    Attributes:
        few: Those of its subset.
        source: The data set, where other photographs lie.
    """

    few: Sequence[Image.Image]
    source: DataSource

    @property
    def others(self) -> ImageSet | None:
        """Photographs that the student has never seen: the test set's; None where there is none."""
        return self.source.test


def find_photographs(folder: Path, *, data_root: Path | None = None) -> Photographs | None:
    """Open the data that a run names, and draw its subset again.

    Args:
        folder: Of the run.
        data_root: Of the named data sets.

    Returns:
        None where ``folder`` is no run's, or its data is gone, another, or damaged.
    """
    try:
        config: dict[str, Any] = RunFolder(folder).config() or {}
        subset = FewShotSubset.load(folder / SUBSET)
        source = open_data((config.get("options") or {}).get("data") or config["data"], root=data_root)
        if (subset.dataset, subset.population) != (source.name, len(source.train)):
            return None
        return Photographs(source.train.pictures(subset.indices), source)
    except (RequestError, OSError, KeyError, TypeError, AttributeError):
        return None
