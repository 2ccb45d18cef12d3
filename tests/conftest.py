"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.attacks.rotation import VARIABLE, rotation
from netgraft.training.heap import keep_freed_memory

pytest.register_assert_rewrite("tests.support")

keep_freed_memory()


def pytest_report_header() -> str:
    """Say which of the rotating attacks are tried."""
    return f"attacks: {VARIABLE}={rotation()}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with the real images and the trained teacher."""
    named = os.environ.get("NETGRAFT_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the archives of real images: NETGRAFT_DATA names no folder and {folder} is none")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small networks gain nothing from a second thread, and lose much where cores are shared."""
    torch.set_num_threads(1)
