"""What native code prints goes to standard error, and what Python prints stays where it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import ctypes
from netgraft.deriving.native_output import native_output_to_stderr
libc = ctypes.CDLL(None)
print("before")
with native_output_to_stderr():
    libc.puts(b"native")
print("after")
libc.puts(b"native again")
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a C library that Python shares")
def test_native_lines_are_kept_off_standard_output() -> None:
    # through a pipe both buffer what they print
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split("\n")) == ["", "after", "before", "native again"]
    assert done.stderr == "native\n"
