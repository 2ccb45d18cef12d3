"""What happens when several processes want the same thing at the same moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.attacks.races import claims, doubled_grid, writes


def test_of_processes_that_claim_a_folder_at_once_one_gets_it(tmp_path: Path) -> None:
    assert claims(tmp_path, processes=4, rounds=60) == []


def test_processes_that_write_one_file_never_share_a_temporary_one(tmp_path: Path) -> None:
    assert writes(tmp_path, processes=4, rounds=60) == []


@pytest.mark.parametrize("turn", range(3))
def test_a_grid_given_to_two_commands_is_computed_once(tmp_path: Path, turn: int) -> None:
    assert doubled_grid(tmp_path, commands=2) == []
