"""OpenMP's threads are told to wait briefly before PyTorch is loaded, unless a user has said how they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from netgraft.training.waiting import SAID, wait_briefly

# what the command's own entry has said by the time that PyTorch is loaded
SEEN_BY_TORCH = """
import importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv = ["netgraft", "methods", "netgraft"]
from netgraft.cli.entry import main
main()
"""


def test_threads_wait_briefly() -> None:
    environment = {"PATH": "/bin"}
    wait_briefly(environment)
    assert environment == {"PATH": "/bin", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


@pytest.mark.parametrize("name", SAID)
def test_what_a_user_has_said_of_waiting_stays(name: str) -> None:
    environment = {name: "7"}
    wait_briefly(environment)
    assert environment == {name: "7"}


@pytest.mark.parametrize(("said", "expected"), [({}, "1000 0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None None")])
def test_the_command_says_it_before_pytorch_is_loaded(said: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SAID} | said
    done = subprocess.run(
        [sys.executable, "-P", "-c", SEEN_BY_TORCH], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == expected.split()
