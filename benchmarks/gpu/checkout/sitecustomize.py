"""Lets ``import netgraft.cli`` work in a checkout that isn't installed: ``PYTHONPATH=benchmarks/gpu/checkout:.``.

``cli/`` becomes ``netgraft.cli`` where the package is installed. Python imports a module of this name at its start, in
processes that others start too.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

NAME = "netgraft.cli"

FOLDER = Path(__file__).resolve().parents[3] / "cli"


class CommandLineOfCheckout:
    """Finds the command line where no installation has it."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where ``netgraft.cli`` lies; None for any other module."""
        if name != NAME:
            return None
        return importlib.util.spec_from_file_location(
            name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )


def run_other() -> None:
    """Run the module of the same name that this one stands in front of, if there is one."""
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    sys.meta_path.append(CommandLineOfCheckout)
    run_other()
