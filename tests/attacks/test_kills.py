"""Runs that are killed in front of a file event, others each day, come to the student of a run that never was."""

from __future__ import annotations

from pathlib import Path

import pytest
from netgraft.cli.main import run

from benchmarks.attacks.kills import Whole, command, killed_at, whole
from benchmarks.attacks.rotation import rotated, rotation

POINTS = {"netgraft": 14, "derived": 6}
"""Recipe -> how many events of it are tried."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    folder = tmp_path_factory.mktemp("whole")
    # here, so that the processes forked later have everything imported
    assert run(command("netgraft", folder / "first")) == 0
    return {recipe: whole(recipe, folder / recipe) for recipe in POINTS}


def test_events_are_those_of_every_file_that_a_run_leaves(runs: dict[str, Whole]) -> None:
    for each in runs.values():
        names = {event.split()[1] for event in each.events}
        written = {Path(file).name for file in each.files}
        # the library of the answers has a name as long as its temporary name is cut
        missing = {name for name in written if not any(name[:40] in touched for touched in names)}
        assert missing == set()
        assert len(each.events) > 100


@pytest.mark.parametrize(
    ("recipe", "number"), [(recipe, number) for recipe, count in POINTS.items() for number in range(count)]
)
def test_a_killed_run_goes_on_to_the_same_student(
    runs: dict[str, Whole], recipe: str, number: int, tmp_path: Path
) -> None:
    each = runs[recipe]
    at = rotated(len(each.events), POINTS[recipe], rotation())[number]
    print(f"killed in front of event {at}, {each.events[at]}, of {recipe}")
    assert killed_at(each, at, tmp_path / "killed") == ""
