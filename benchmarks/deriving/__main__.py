"""Derive a student of one representative of each of timm's architecture classes, and note what came out.

    python -m benchmarks.deriving            # the smallest model of each class
    python -m benchmarks.deriving eva vit    # those with these words in their names

Each model runs in a process of its own, with a limit of time and memory; finished ones are not computed again.
benchmarks.deriving.table prints the results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.deriving.checking import check
from benchmarks.splitting.__main__ import LARGEST, index, measure, representatives, write

LIMIT_SECONDS = 900
"""For one model: all of its places are proven, tried and solved."""

RESULTS = Path(__file__).parents[1] / "results" / "deriving" / "timm.json"


def main() -> None:
    """Walk through the classes, small models first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--again", action="store_true", help="compute finished ones again")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    sizes = index("timm")
    for name in representatives(sizes):
        asked = not options.words or any(word in name for word in options.words)
        if not asked or (name in results and not options.again):
            continue
        fits = sizes[name]["parameters"] <= LARGEST
        too_large = {**sizes[name], "skipped": "needs more than 3 GiB"}
        results[name] = measure(name, check, LIMIT_SECONDS) if fits else too_large
        write(RESULTS, results)
        print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
