"""How attacks are chosen, noticed and counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.attacks.__main__ import PARTS
from benchmarks.attacks.commands import CRASHED, Ended, Forked
from benchmarks.attacks.damage import flip, some_bits
from benchmarks.attacks.file_events import killing, listed, noting
from benchmarks.attacks.kills import RECIPES
from benchmarks.attacks.rotation import rotated, rotation
from benchmarks.attacks.table import PROMISES, table
from netgraft.methods.registry import METHODS


@pytest.mark.parametrize(("count", "chosen"), [(100, 20), (97, 14), (20, 20), (5, 20), (1, 1)])
def test_turns_reach_every_number(count: int, chosen: int) -> None:
    days = -(-count // chosen)
    reached = [set(rotated(count, chosen, day)) for day in range(1000, 1000 + days)]
    assert all(len(each) == min(count, chosen) for each in reached)
    assert set.union(*reached) == set(range(count))


def test_a_day_can_be_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETGRAFT_ROTATION", "123")
    assert rotation() == 123
    monkeypatch.delenv("NETGRAFT_ROTATION")
    assert rotation() > 20_000


def test_every_method_is_killed() -> None:
    assert set(METHODS) < set(RECIPES)


def touch(folder: Path) -> int:
    """Five events of the folder, and some that are none."""
    Path(folder, "a").write_text("first")
    Path(folder, "b.tmp").write_text("second")
    Path(folder, "b.tmp").read_text()
    Path(folder, "b.tmp").replace(folder / "b")
    Path(folder.parent, f"{folder.name}-other").write_text("")
    Path(folder, "a").unlink()
    return 0


def test_events_are_noted_and_one_of_them_kills(tmp_path: Path) -> None:
    folder, log = tmp_path / "in", tmp_path / "log"
    folder.mkdir()

    def noted() -> int:
        noting(folder, log)()
        return touch(folder)

    assert Forked(noted).wait() == Ended(0, "", "")
    assert listed(log) == ["open a", "open b.tmp", "open b.tmp", "os.rename b.tmp", "os.remove a"]
    (folder / "b").unlink()

    def killed() -> int:
        killing(folder, 2)()
        return touch(folder)

    assert Forked(killed).wait().code == -9
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "first", "b.tmp": "sec"}


def test_how_a_process_ended_is_seen() -> None:
    def fail() -> int:
        print("printed")
        raise KeyError("reason")

    def fall() -> int:
        os.kill(os.getpid(), 15)
        return 0

    ended = Forked(fail).wait()
    assert (ended.code, ended.printed) == (CRASHED, "printed\n")
    assert "KeyError: 'reason'" in ended.said
    assert not ended.is_refusal(CRASHED)
    assert Forked(fall).wait().code == -15
    assert Ended(2, "", "netgraft: one\n").is_refusal(2)
    for wrong in (Ended(2, "", "netgraft: one\ntwo\n"), Ended(2, "x", "netgraft: one\n"), Ended(2, "", "one\n")):
        assert not wrong.is_refusal(2)


def test_one_bit_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\x00\x00")
    flip(path, 10)
    assert path.read_bytes() == b"\x00\x04"
    path.write_bytes(bytes(100))
    bits = some_bits(path, 20, 0)
    assert {0, 799} < set(bits) <= set(range(800))
    assert len(bits) == 20


def test_the_table_counts_and_names_what_did_not_hold(tmp_path: Path) -> None:
    assert PROMISES.keys() == PARTS.keys()
    path = tmp_path / "results.json"
    made_with = {"versions": {"netgraft": "9"}, "machine": "a machine"}
    path.write_text(json.dumps({"made_with": made_with, "kills": {"0 kd": "", "1 at": "expected\n this"}}))
    text = table(path)
    kills = PROMISES["kills"]
    assert f"| {kills[0]} | {kills[1]} | 2 | 1 |" in text
    assert f"- {kills[0]}: 1 at: expected this" in text
    assert text.endswith("netgraft 9; a machine.")
