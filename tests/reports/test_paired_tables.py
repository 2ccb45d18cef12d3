"""Rows compared with one of them, run by run."""

from __future__ import annotations

from pathlib import Path

import pytest
from netgraft.cli.table import table as command

from netgraft.errors import RequestError
from netgraft.reports.formats import markdown
from netgraft.reports.tables import paired_table
from tests.support.result_files import (
    PUBLISHED,
    TWO_ROWS,
    body,
    heading,
    summaries,
    write_experiment,
    write_runs,
)


def test_differences_are_taken_run_by_run(tmp_path: Path) -> None:
    # 0.1, 0.2 and 0.3 more at ten shots: t = 0.2 / (0.1 / sqrt(3)); with the 0.4 at one shot 0.25 / (0.1291 / sqrt(4))
    write_runs(tmp_path, "netgraft", [5.0, 1.0, 3.0], shots=10)
    write_runs(tmp_path, "kd", [5.1, 1.2, 3.3], shots=10)
    write_runs(tmp_path, "netgraft", [1.0], shots=1)
    write_runs(tmp_path, "kd", [1.4, 99.0], shots=1)  # subset 1 has nothing to be compared with
    write_runs(tmp_path, "at", [4.0], shots=10)
    write_runs(tmp_path, "at", [7.0], shots=5)  # nor have five shots
    text = markdown(paired_table(summaries(tmp_path), "netgraft"))
    assert heading(text) == ["row", "1 shot", "10 shots", "all", "n", "t"]
    assert body(text) == [
        ["at", "-", "-1.00", "-1.00", "1", "-"],
        ["kd", "0.40", "0.20 ± 0.10", "0.25 ± 0.13", "4", "3.9"],
    ]


def test_any_figure_can_be_compared(tmp_path: Path) -> None:
    write_runs(tmp_path, "netgraft", [0.0, 0.0], agreement=99.0)
    write_runs(tmp_path, "kd", [1.0, 1.0], agreement=97.0)
    text = markdown(paired_table(summaries(tmp_path), "netgraft", "agreement"))
    assert body(text) == [["kd", "-2.00 ± 0.00", "-2.00 ± 0.00", "2", "-"]]  # equal differences have no t
    write_runs(tmp_path, "kd", [1.0, 1.0], agreement=None)
    assert body(markdown(paired_table(summaries(tmp_path), "netgraft", "agreement"))) == [["kd", "-", "-", "0", "-"]]


def test_pairs_of_models_are_compared_apart(tmp_path: Path) -> None:
    for student, gap in (("small", 1.0), ("tiny", 2.0)):
        write_runs(tmp_path, "netgraft", [0.5], student=student)
        write_runs(tmp_path, "kd", [gap], student=student)
    write_runs(tmp_path, "kd", [9.0], student="odd")
    text = markdown(paired_table(summaries(tmp_path), "netgraft"))
    assert body(text) == [
        ["small", "kd", "0.50", "0.50", "1", "-"],
        ["tiny", "kd", "1.50", "1.50", "1", "-"],
    ]


def test_a_row_that_nothing_can_be_compared_with(tmp_path: Path) -> None:
    write_experiment(tmp_path, TWO_ROWS + PUBLISHED)
    write_runs(tmp_path, "kd", [0.1])
    with pytest.raises(RequestError, match=r"'kd', which is the only one of its pair and number of images"):
        paired_table(summaries(tmp_path), "kd")
    with pytest.raises(RequestError, match=r"'Theirs', which was not measured; the rows are kd$"):
        paired_table(summaries(tmp_path), "Theirs")


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path, "netgraft", [0.5])
    write_runs(tmp_path, "kd", [0.75])
    command.main([str(tmp_path), "--against", "kd"], standalone_mode=False)
    text = capsys.readouterr().out
    assert body(text) == [["netgraft", "-0.25", "-0.25", "1", "-"]]
    assert "\nGap to the teacher in points of top-1: difference from row kd, run by run" in text
