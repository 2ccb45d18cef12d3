"""The README's Python lines run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm

from benchmarks.render_docs import ROOT
from netgraft.data.sources import open_all

README = ROOT / "README.md"


def test_the_python_lines_make_a_student_that_timm_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    student = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    plain = timm.create_model("digits_vgg7_bn_half")
    assert {name: value.shape for name, value in student.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }


def test_the_page_on_python_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert "agreement" in capsys.readouterr().out
    assert names["again"].pairing.init == "kept"
    assert names["smaller"].derivation is not None


def test_the_photographs_that_the_page_makes_are_a_hundred_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert len(open_all(tmp_path / "photos").train) == 100
