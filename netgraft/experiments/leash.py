"""``python -m netgraft.experiments.leash``: the command line in a process that ends with the one that started it.

A cell of a cluster must not outlive its task: the node believes that its CPUs are free again. The task holds the other
end of this process's standard input, which its end closes, however it comes.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading


def main() -> None:
    """Carry out the command line."""
    # Ray starts its workers, and these this process, with Ctrl-C blocked, and in the background of a shell ignored; the
    # task asks for an end by it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    runpy.run_module("netgraft", run_name="__main__", alter_sys=True)


def _end_with_standard_input() -> None:
    os.read(0, 1)  # until there is nobody who could write
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
