"""Where the command begins: before anything else is imported, it can be interrupted and has somewhere to write."""

from __future__ import annotations

import os
import signal
import sys

from .signals import interrupt, leave


def main() -> None:
    """Entry point."""
    open_standard_streams()
    # who has asked to ignore Ctrl-C, as nohup does, goes on ignoring it
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from netgraft.training.waiting import wait_briefly

        wait_briefly(os.environ)
        from .main import run_alone

        code = run_alone(sys.argv[1:])
    except KeyboardInterrupt:  # between two imports
        leave()
    sys.exit(code)


def open_standard_streams() -> None:
    """Give what was started with a closed input, output or error stream an empty one.

    Otherwise the first file that is opened would get the number of the closed one, and be written into.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
