"""Freed memory that stays: what the kernel is asked for, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from netgraft.training.heap import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
torch.set_num_threads(1)
for step in range(40):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(8 * 2**20).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("no glibc here")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is not glibc")
def test_large_tensors_come_back_without_new_pages() -> None:
    kept, given_back = page_faults("keep"), page_faults("leave")
    # 32 MiB, twenty times, in pages of 4 KiB, or of 2 MiB where the kernel hands out huge ones
    assert given_back > 20 * 32 / 2
    assert kept < given_back / 4
