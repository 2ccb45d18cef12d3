"""Rows compared with one of them, run by run."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from netgraft.errors import RequestError
from netgraft.reports.formats import comma_separated, latex, markdown
from netgraft.reports.tables import Interval, PValue, paired_table
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
    assert heading(text) == ["row", "1 shot", "10 shots", "all", "n", "t", "p", "95 % interval"]
    assert body(text) == [
        ["at", "-", "-1.00", "-1.00", "1", "-", "-", "-"],
        ["kd", "0.40", "0.20 ± 0.10", "0.25 ± 0.13", "4", "3.9", "0.030", "[0.04, 0.46]"],
    ]


def test_p_and_interval_are_those_of_two_runs_in_closed_form(tmp_path: Path) -> None:
    # of two runs t follows Cauchy's distribution: p = 1 - 2 atan(t) / pi, and the interval is tan(0.475 pi) errors wide
    write_runs(tmp_path, "netgraft", [1.0, 1.0])
    write_runs(tmp_path, "kd", [1.9, 2.1])
    table = paired_table(summaries(tmp_path), "netgraft")
    t, p, interval = table.lines[0].values[-3:]
    assert t == pytest.approx(10)
    assert isinstance(p, PValue)
    assert p.probability == pytest.approx(1 - 2 * math.atan(10) / math.pi)
    half = 0.1 * math.tan(0.475 * math.pi)
    assert isinstance(interval, Interval)
    assert (interval.low, interval.high) == (pytest.approx(1 - half), pytest.approx(1 + half))
    low, high = f"{1 - half:.2f}", f"{1 + half:.2f}"
    assert body(markdown(table))[0][-3:] == ["10.0", "0.063", f"[{low}, {high}]"]
    assert f"& $[{low}, {high}]$ " in latex(table)
    header, row = csv.reader(comma_separated(table).splitlines())
    assert dict(zip(header, row, strict=True))["interval_low"] == str(interval.low)
    assert dict(zip(header, row, strict=True))["p"] == str(p.probability)


def test_a_tiny_p_is_a_bound(tmp_path: Path) -> None:
    write_runs(tmp_path, "netgraft", [0.0, 0.0, 0.0])
    write_runs(tmp_path, "kd", [1.0, 1.001, 1.002])
    text = markdown(paired_table(summaries(tmp_path), "netgraft"))
    assert body(text)[0][-2] == r"\<0.001"


def test_any_figure_can_be_compared(tmp_path: Path) -> None:
    write_runs(tmp_path, "netgraft", [0.0, 0.0], agreement=99.0)
    write_runs(tmp_path, "kd", [1.0, 1.0], agreement=97.0)
    text = markdown(paired_table(summaries(tmp_path), "netgraft", "agreement"))
    assert body(text) == [["kd", "-2.00 ± 0.00", "-2.00 ± 0.00", "2", "-", "-", "-"]]  # equal differences have no t
    write_runs(tmp_path, "kd", [1.0, 1.0], agreement=None)
    assert body(markdown(paired_table(summaries(tmp_path), "netgraft", "agreement"))) == [
        ["kd", "-", "-", "0", "-", "-", "-"]
    ]


def test_pairs_of_models_are_compared_apart(tmp_path: Path) -> None:
    for student, gap in (("small", 1.0), ("tiny", 2.0)):
        write_runs(tmp_path, "netgraft", [0.5], student=student)
        write_runs(tmp_path, "kd", [gap], student=student)
    write_runs(tmp_path, "kd", [9.0], student="odd")
    text = markdown(paired_table(summaries(tmp_path), "netgraft"))
    assert body(text) == [
        ["small", "kd", "0.50", "0.50", "1", "-", "-", "-"],
        ["tiny", "kd", "1.50", "1.50", "1", "-", "-", "-"],
    ]


def test_a_row_that_nothing_can_be_compared_with(tmp_path: Path) -> None:
    write_experiment(tmp_path, TWO_ROWS + PUBLISHED)
    write_runs(tmp_path, "kd", [0.1])
    with pytest.raises(RequestError, match=r"'kd', which is the only one of its pair and number of images"):
        paired_table(summaries(tmp_path), "kd")
    with pytest.raises(RequestError, match=r"'Theirs', which was not measured; the rows are kd$"):
        paired_table(summaries(tmp_path), "Theirs")
