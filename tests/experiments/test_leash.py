"""A cell's process on a node ends with the one that started it."""

from __future__ import annotations

import signal
import subprocess
import sys

LEASHED = """
import runpy, sys, time

def wait(*arguments, **options):
    try:
        print(*arguments, flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(130)

runpy.run_module = wait
from netgraft.experiments.leash import main
main()
"""


def started() -> subprocess.Popen[bytes]:
    """Start a process as Ray's workers do, with Ctrl-C blocked and ignored; it is ready when this returns."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, "-c", LEASHED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"netgraft\n"
    return process


def test_a_process_ends_with_the_one_that_started_it() -> None:
    process = started()
    assert process.stdin is not None
    process.stdin.close()  # as the end of this process would
    assert process.wait(600) == -signal.SIGKILL


def test_a_process_hears_of_ctrl_c() -> None:
    process = started()
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 130
    assert process.stdin is not None
    process.stdin.close()
