"""What ``netgraft suggest`` prints for people and for programs."""

from __future__ import annotations

import json

import pytest
from netgraft.cli.main import run

from tests.support.cli import fails


def test_the_table_fits_a_terminal_and_says_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["suggest", "digits_vgg7_bn", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert max(map(len, shown.out.splitlines())) <= 80
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.out.splitlines() if line[:1] == "|"]
    assert run(["suggest", "digits_vgg7_bn", "--quiet", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["teacher"] == rows[1][0] == "digits_vgg7_bn"
    assert (printed["input_size"], printed["classes"]) == ([1, 8, 8], 10)
    assert [row[0] for row in rows[2:]] == [each["student"] for each in printed["students"]]
    for row, each in zip(rows[2:], printed["students"], strict=True):
        assert row[1:5] == [
            f"{each['parameters'] / 1e6:.2f} M",
            f"{each['macs'] / 1e6:.1f} M",
            f"{each['macs'] / printed['macs']:.0%}",
            each["start"],
        ]
        assert each["blocks"] >= each["inherited"] >= 0
        assert each["pretrained"] is False


def test_where_nothing_is_smaller_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["suggest", "cifar_resnet8", "--image-size", "8", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "none was found" in shown
    assert "--keep macs=0.5" in shown


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean" in fails(capsys, "suggest", "resnet43")
    assert "--most" in fails(capsys, "suggest", "resnet18", "--most", "0")
