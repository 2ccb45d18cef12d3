"""Print the committed results as the Markdown table of docs/deriving.md: ``python -m benchmarks.deriving.table``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.deriving.__main__ import RESULTS

Result = dict[str, Any]


def is_right(result: Result) -> bool:
    """Whether the student runs, opens again with the same bits, costs what was reckoned and no more than was asked."""
    return (
        result["finite"]
        and result["opens_with_the_same_bits"]
        and result["keeping_everything_is_the_teacher"]
        and abs(result["macs"] - result["macs_reckoned"]) < 1e-6
        and result["macs"] <= 0.6
    )


def row(name: str, result: Result) -> str:
    """One row for a model."""
    if "macs" not in result:
        reason = result.get("refused") or result.get("failed") or result.get("skipped") or result.get("no_classifier")
        return f"| {result.get('class', '')} | {name} | - | | | | {' '.join(str(reason).split())[:160]} |"
    right = "yes" if is_right(result) else "no"
    return (
        f"| {result['class']} | {name} | {right} | {result['macs']:.3f} | {result['places']} | "
        f"{result['left_out']} of {result['blocks']} | |"
    )


def table(path: Path = RESULTS) -> str:
    """Return the summary and the table of all models."""
    results: dict[str, Result] = json.loads(path.read_text(encoding="utf-8"))
    tried = {name: r for name, r in results.items() if "no_classifier" not in r and "skipped" not in r}
    derived = {name: r for name, r in tried.items() if "macs" in r}
    right = sum(map(is_right, derived.values()))
    lines = [
        f"{len(tried)} of {len(results)} models were tried; the others are no classifiers, or took too much time or "
        f"memory. {right} students are right, {len(derived) - right} wrong, {len(tried) - len(derived)} refused.",
        "",
        "| class | model | right | MACs | places | blocks left out | why not |",
        "|---|---|---|---|---|---|---|",
    ]
    order = sorted(results, key=lambda name: (results[name].get("class", ""), name))
    return "\n".join([*lines, *(row(name, results[name]) for name in order)])


if __name__ == "__main__":
    print(table())
