"""A request so small that tests run it often, and what they see of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from netgraft.cli.main import run

FEW_STEPS = ["--views", "plain", "--block-steps", "2", "--join-steps", "2"]

QUICK = ["distill", "--shots", "2", *FEW_STEPS]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a wrong request; return its one sentence after seeing that nothing else was said or written."""
    before = sorted(Path().rglob("*"))
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err
    assert said.startswith("netgraft: ")
    assert "Traceback" not in said
    assert sorted(Path().rglob("*")) == before
    return said


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return dict(json.loads(captured.out))
