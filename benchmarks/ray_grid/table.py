"""Print the committed results as the Markdown table of docs/benchmark.md: ``python -m benchmarks.ray_grid.table``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "ray-grid"


def row(result: dict[str, Any]) -> str:
    """One line for a grid."""
    process = result["process_seconds"]
    what = "runs of `netgraft distill`" if process is None else f"processes that wait {process:g} s"
    there, here = result["cluster"], result["without"]
    parts = [
        f"{result['cells']} {what}",
        f"{result['same_files']} of {result['cells']}",
        len(there["lost"]),
        len(there["twice"]),
        len(there["started_again"]),
        f"{there['overhead_median']:.2f} s",
        f"{there['overhead_mean']:.2f} s",
        f"{there['overhead_largest']:.2f} s",
        f"{here['overhead_largest']:.2f} s",
    ]
    return f"| {' | '.join(map(str, parts))} |"


def table(folder: Path = RESULTS) -> str:
    """Return the table of all grids."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    lines = [
        "| cells | same files | lost | twice | run again | overhead a cell, median | mean | largest "
        "| largest without a cluster |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(row, results),
    ]
    machines = sorted({f"{result['machine']}; ray {result['versions']['ray']}" for result in results})
    return "\n".join([*lines, "", *(f"{machine}." for machine in machines)])


if __name__ == "__main__":
    print(table())
