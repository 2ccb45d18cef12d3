"""Print the committed results as the Markdown tables of docs/splitting.md: ``python -m benchmarks.splitting.table``."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.splitting.__main__ import RESULTS

ZOOS = ("timm", "torchvision")


Result = dict[str, Any]


def classifiers(results: dict[str, Result]) -> dict[str, Result]:
    """Leave out what is no classifier and what was not run."""
    return {name: r for name, r in results.items() if "no_classifier" not in r and "skipped" not in r}


def is_exact(result: Result) -> bool:
    """Whether logits, statistics and auxiliary counts agree bit by bit in both modes, and no gradient is missing."""
    modes = [result.get(mode, {}) for mode in ("eval", "train")]
    return all(
        "failed" not in mode and not mode["logits"] and not mode["statistics"] and not mode["gradients_missing"]
        for mode in modes
        if mode
    ) and all(modes)


def is_full(result: Result) -> bool:
    """Whether there are four blocks, or as many as stages."""
    return result["blocks"] >= min(4, result["stages"] or 4)


def layouts(result: Result) -> str:
    """The layouts at the cuts, each once, in order."""
    found = dict.fromkeys(cut["layout"] for cut in result["cuts"])
    prefix = max((cut["prefix_tokens"] for cut in result["cuts"]), default=0)
    return ", ".join(f"tokens + {prefix}" if kind == "tokens" and prefix else kind for kind in found)


def summary(zoo: str, results: dict[str, Result]) -> str:
    """One row for a zoo."""
    tried = classifiers(results)
    split = {name: r for name, r in tried.items() if "blocks" in r}
    good = [r for r in split.values() if is_exact(r) and is_full(r)]
    wrong = [r for r in split.values() if not is_exact(r)]
    kinds = len({r["class"] for r in tried.values() if "class" in r})
    gradients = max(
        (r[mode]["gradients"] for r in split.values() for mode in ("eval", "train") if mode in r), default=0
    )
    seconds = statistics.median(r["seconds"] for r in split.values())
    return (
        f"| {zoo} | {kinds} | {len(tried)} | {100 * len(good) / len(tried):.1f} % ({len(good)}) | {len(wrong)} | "
        f"{len(tried) - len(split)} | {gradients:.1g} | {seconds:.2f} |"
    )


def row(name: str, result: Result) -> str:
    """One row for a model."""
    if "blocks" not in result:
        reason = result.get("refused") or result.get("failed") or result.get("skipped") or result.get("no_classifier")
        return f"| {result.get('class', '')} | {name} | - | - | | | {' '.join(str(reason).split())[:160]} |"
    exact = "yes" if is_exact(result) else "no"
    return (
        f"| {result['class']} | {name} | {result['blocks']} | {exact} | {layouts(result)} | {result['seconds']:.2f} | |"
    )


def table(folder: Path = RESULTS) -> str:
    """Return the tables of one folder's results."""
    zoos = {zoo: json.loads((folder / f"{zoo}.json").read_text(encoding="utf-8")) for zoo in ZOOS}
    lines = [
        "| zoo | classes | classifiers | exact, in four blocks or as many as stages | wrong | refused "
        "| gradients differ by | seconds, median |",
        "|---|---|---|---|---|---|---|---|",
        *(summary(zoo, results) for zoo, results in zoos.items()),
    ]
    for zoo, results in zoos.items():
        lines += ["", f"### {zoo}", "", "| class | model | blocks | exact | layouts at the cuts | seconds | why not |"]
        lines.append("|---|---|---|---|---|---|---|")
        order = sorted(results, key=lambda name: (results[name].get("class", ""), name))
        lines += [row(name.removeprefix("torchvision:"), results[name]) for name in order]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Print the tables of a folder."""
    print(table(Path(arguments[0]) if arguments else RESULTS))


if __name__ == "__main__":
    main(sys.argv[1:])
