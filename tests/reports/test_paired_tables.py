"""Rows compared with one of them, run by run."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from netgraft.errors import RequestError
from netgraft.reports.formats import comma_separated, latex, markdown
from netgraft.reports.summaries import Statistic
from netgraft.reports.tables import Interval, PValue, Table, paired_table
from tests.support.result_files import (
    PUBLISHED,
    TWO_ROWS,
    body,
    heading,
    summaries,
    write,
    write_experiment,
    write_runs,
)


def of_three(mean: float, sd: float) -> tuple[float, float, float, float]:
    """Return t, its two-sided p and the interval's ends for three values, by Student's distribution in closed form."""
    error = sd / math.sqrt(3)
    t, quantile = mean / error, 0.95 / math.sqrt(2 * 0.975 * 0.025)
    return t, 1 - abs(t) / math.sqrt(2 + t**2), mean - quantile * error, mean + quantile * error


def figures(table: Table) -> tuple[Statistic, int, float, float, float, float]:
    """Return the last columns of a table of one line: all, n, t, p and the interval's ends."""
    *_, together, n, t, p, interval = table.lines[0].values
    assert isinstance(together, Statistic)
    assert isinstance(n, int)
    assert isinstance(t, float)
    assert isinstance(p, PValue)
    assert isinstance(interval, Interval)
    return together, n, t, p.probability, interval.low, interval.high


def test_differences_are_taken_run_by_run(tmp_path: Path) -> None:
    # 0.1, 0.2 and 0.3 more at ten shots; with the 0.4 at one shot subset 0 has 0.25, and all of them 0.25 ± 0.05
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
        ["kd", "0.40", "0.20 ± 0.10", "0.25 ± 0.05", "3", "8.7", "0.013", "[0.13, 0.37]"],
    ]


def test_numbers_of_shots_of_one_subset_count_once(tmp_path: Path) -> None:
    # nine differences: subset by subset 0.1, 0.1, 0.4; 0.3, 0.5, 0.4; 0.6, 0.6, 0.6, that is 0.2, 0.4 and 0.6
    for shots, differences in ((1, [0.1, 0.3, 0.6]), (5, [0.1, 0.5, 0.6]), (10, [0.4, 0.4, 0.6])):
        write_runs(tmp_path, "netgraft", [1.0, 2.0, 3.0], shots=shots)
        write_runs(tmp_path, "kd", [1 + differences[0], 2 + differences[1], 3 + differences[2]], shots=shots)
    table = paired_table(summaries(tmp_path), "netgraft")
    together, n, *rest = figures(table)
    assert (together.mean, together.sd, together.n, n) == (pytest.approx(0.4), pytest.approx(0.2), 3, 3)
    assert rest == [pytest.approx(value) for value in of_three(0.4, 0.2)]
    assert body(markdown(table))[0][1:5] == ["0.33 ± 0.25", "0.40 ± 0.26", "0.47 ± 0.12", "0.40 ± 0.20"]


def test_training_seeds_of_one_subset_count_once(tmp_path: Path) -> None:
    # subset by subset 0.0 and 0.2, 0.3 and 0.5, 0.6 and 1.0 at ten shots, that is 0.1, 0.4 and 0.8
    for seed, differences in enumerate(([0.0, 0.3, 0.6], [0.2, 0.5, 1.0])):
        for subset, difference in enumerate(differences):
            seeds = {"subset_seed": subset, "seed": 7 + seed}
            base = 1.0 + subset + seed
            write(tmp_path, f"netgraft-{subset}-{seed}", row="netgraft", gap=base, **seeds)
            write(tmp_path, f"kd-{subset}-{seed}", row="kd", gap=base + difference, **seeds)
    table = paired_table(summaries(tmp_path), "netgraft")
    mean, sd = 1.3 / 3, math.sqrt(((0.1 - 1.3 / 3) ** 2 + (0.4 - 1.3 / 3) ** 2 + (0.8 - 1.3 / 3) ** 2) / 2)
    together, n, *rest = figures(table)
    assert (together.mean, together.sd, together.n, n) == (pytest.approx(mean), pytest.approx(sd), 3, 3)
    assert table.lines[0].values[1] == together  # the column of ten shots
    assert rest == [pytest.approx(value) for value in of_three(mean, sd)]


def test_one_subset_has_no_t_however_many_its_runs_are(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for shots in (1, 10):
            seeds = {"subset_seed": 4, "seed": seed, "shots": shots}
            write(tmp_path, f"netgraft-{shots}-{seed}", row="netgraft", gap=1.0, **seeds)
            write(tmp_path, f"kd-{shots}-{seed}", row="kd", gap=1.0 + 0.1 * seed, **seeds)
    text = markdown(paired_table(summaries(tmp_path), "netgraft"))
    assert body(text) == [["kd", "0.10", "0.10", "0.10", "1", "-", "-", "-"]]


def test_differences_that_rounding_alone_tells_apart_have_no_t(tmp_path: Path) -> None:
    # one image of 600 each time, in figures of four decimals
    write_runs(tmp_path, "netgraft", [0.1667, 0.3333, 0.5])
    write_runs(tmp_path, "kd", [0.3333, 0.5, 0.6667])
    assert body(markdown(paired_table(summaries(tmp_path), "netgraft")))[0][-4:] == ["3", "-", "-", "-"]


def test_the_note_says_what_counts_once(tmp_path: Path) -> None:
    write_runs(tmp_path, "netgraft", [1.0, 2.0])
    write_runs(tmp_path, "kd", [1.5, 2.75])
    note, *_ = paired_table(summaries(tmp_path), "netgraft").notes
    assert "mean ± sample standard deviation over subsets. Each subset counts once" in note
    assert note.endswith("± of what was measured here holds subset and training seed together.")


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
