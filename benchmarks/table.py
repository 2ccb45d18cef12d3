"""Print result files as a Markdown table: mean and standard deviation over the subsets of each row.

python -m benchmarks.table benchmarks/results/cifar10-jpeg
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEADER = (
    "| student | shots | method | preset | start | views | gap to the teacher | top-1 | agreement | steps | n |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def mean_and_sd(values: Sequence[float]) -> str:
    """``mean +- sd``, the sample standard deviation; the mean alone for a single value."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def line(results: Sequence[Mapping[str, Any]]) -> str:
    """One row of the table."""
    first = results[0]
    return (
        f"| {first['student']} | {first['shots']} | {first['method']} | {first['preset']} | {first['init']} | "
        f"{first['views'].split(':')[0]} | {mean_and_sd([r['gap'] for r in results])} | "
        f"{mean_and_sd([r['student_top1'] for r in results])} | {mean_and_sd([r['agreement'] for r in results])} | "
        f"{first['steps']} | {len(results)} |"
    )


def table(folder: Path) -> str:
    """All rows of a folder of result files, named ROW-seedN.json."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*-seed*.json")):
        rows[path.stem.rsplit("-seed", 1)[0]].append(json.loads(path.read_text(encoding="utf-8")))
    return "\n".join([HEADER, *(line(results) for results in rows.values())])


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
