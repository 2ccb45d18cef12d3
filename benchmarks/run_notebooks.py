"""Executes the notebooks of the documentation and keeps what they print: ``python -m benchmarks.run_notebooks``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "docs" / "notebooks"

SECONDS = 600
"""That a cell may take."""


def executed(path: Path, folder: Path) -> Any:
    """Run a notebook in a process of its own.

    Args:
        path: Of the notebook; not changed.
        folder: In which it runs, and leaves what it writes.

    Returns:
        The notebook with the outputs of this run. Lines that were rewritten in place show what they said last, as a
        browser shows them.
    """
    notebook = nbformat.read(path, as_version=4)
    # tqdm's, of timm's imports, where ipywidgets isn't installed
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        # when a cell ran says nothing to a reader
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = _together(cell.outputs)
    return notebook


def _together(outputs: Sequence[Any]) -> list[Any]:
    """Join what was written to one stream piece by piece."""
    joined: list[Any] = []
    for stream, pieces in groupby(outputs, key=lambda output: output.get("name")):
        if stream is None:
            joined += pieces
        else:
            text = as_shown("".join(piece.text for piece in pieces))
            joined.append(nbformat.v4.new_output("stream", name=stream, text=text))
    return joined


def as_shown(text: str) -> str:
    """Return what is left of lines of which carriage returns lead back to the start."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return "\n".join(lines)


def main() -> None:
    """Execute all of them in place."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
        sys.stdout.write(f"executed: {path}\n")


if __name__ == "__main__":
    main()
