"""Print the committed speed results as the Markdown table of docs/speed.md: ``python -m benchmarks.speed.table``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import RESULTS

ORDER = ("published", "usable", "limit", "methods", "growth", "startup", "evaluation", "heap", "load", "views", "pools")


AT_MOST = {"limit", "startup", "evaluation", "usable"}
"""Benchmarks whose targets are bounds from above."""


def rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield what was measured, its value and its target."""
    targets = result.get("targets", {})
    for name, value in result.get("ratios", {}).items():
        yield (f"{result['name']}: {name}", f"{value:g} x", _target(result["name"], targets.get(name)))
    for name, value in result.get("medians", {}).items():
        # seconds of whole runs say less than their ratios
        if "ratios" not in result:
            unit = "" if name.startswith(("seconds", "milliseconds", "MiB")) else " s"
            yield (f"{result['name']}: {name}", f"{value:g}{unit}", _target(result["name"], targets.get(name)))
    for name, value in result.get("on_demand", {}).items():
        yield (f"{result['name']}: {name}, decoded on demand", f"{value:g} x", "at least 1")
    for name, line in result.get("fits", {}).items():
        text = f"{line['start']:g} + {line['slope']:g} each, {line['explained']:.1%} of the variance"
        yield (f"{result['name']}: {name}", text, "a straight line")


def _target(benchmark: str, target: float | None) -> str:
    if target is None:
        return ""
    return f"at most {target:g}" if benchmark in AT_MOST else f"at least {target:g}"


def table(folder: Path = RESULTS) -> str:
    """Return the table of one folder's results."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    ordered = [results[name] for name in ORDER if name in results]
    lines = ["| measured | median | asked for |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for result in ordered for row in rows(result)]
    machines = {json.dumps(result["machine"], sort_keys=True) for result in ordered}
    for machine in map(json.loads, sorted(machines)):
        seen = [f"instructions {', '.join(machine['instructions'])}"] if "instructions" in machine else []
        facts = [machine["device"], f"{machine['threads']} threads", *seen, f"torch {machine['torch']}"]
        lines += ["", f"{'; '.join(facts)}."]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Print the table of a folder."""
    print(table(Path(arguments[0]) if arguments else RESULTS))


if __name__ == "__main__":
    main(sys.argv[1:])
