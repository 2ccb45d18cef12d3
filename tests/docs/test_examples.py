"""Every public name of the package has an example in its docstring, and the examples do what they say."""

from __future__ import annotations

import doctest
import socket
from pathlib import Path

import pytest

import netgraft

NAMES = [name for name in dir(netgraft) if not name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_examples_do_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("examples do without a network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = doctest.DocTestFinder().find(getattr(netgraft, name), name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for each in found:
        runner.run(each)
    assert runner.tries, f"{name} has no example in its docstring; add one"
    assert not runner.failures, capsys.readouterr().out


def test_there_are_public_names() -> None:
    assert {"distill", "split", "NetGraft"} <= set(NAMES)
