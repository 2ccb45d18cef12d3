"""A forward of large images with and without freed memory that stays, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from benchmarks.speed.timing import median, ratio, side_by_side, write

PROGRAM = """
import sys, time
import timm, torch
from netgraft.training.heap import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory(), "needs glibc"
torch.set_num_threads(1)
model = timm.create_model("tf_efficientnet_lite0").eval()
images = torch.randn(32, 3, 224, 224)
with torch.no_grad():
    for repeat in range(8):
        if repeat == 3:
            start = time.perf_counter()
        model(images)
print((time.perf_counter() - start) / 5)
"""


def main() -> None:
    """Measure and write the result file."""

    def forward(how: str) -> float:
        done = subprocess.run(  # nosec B603  # a program of this file
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    measured = side_by_side({how: partial(forward, how) for how in ("given back", "kept")})
    write(
        "heap",
        {
            "seconds": measured,
            "medians": {name: median(values) for name, values in measured.items()},
            "ratios": {"forward": ratio(measured, "given back", "kept")},
            "targets": {"forward": 1},
        },
    )


if __name__ == "__main__":
    main()
