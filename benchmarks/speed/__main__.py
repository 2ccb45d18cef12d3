"""Run the named benchmarks, or all: ``python -m benchmarks.speed [NAME ...]``."""

from __future__ import annotations

import sys

from benchmarks.speed import (
    evaluation,
    heap,
    load,
    lower_bound,
    methods,
    pools,
    published,
    scaling,
    startup,
    usable,
    views,
)

BENCHMARKS = {
    "published": published.main,
    "usable": usable.main,
    "limit": lower_bound.main,
    "methods": methods.main,
    "growth": scaling.main,
    "startup": startup.main,
    "evaluation": evaluation.main,
    "heap": heap.main,
    "load": load.main,
    "views": views.main,
    "pools": pools.main,
}


if __name__ == "__main__":
    names = [argument for argument in sys.argv[1:] if not argument.startswith("--")] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            sys.exit(f"no benchmark {name}; choose from {', '.join(BENCHMARKS)}")
        print(name, flush=True)
        BENCHMARKS[name]()
