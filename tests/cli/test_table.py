"""The command that shows results: layouts, figures, pictures, and what contradicts itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from netgraft.cli.table import table as command

from netgraft.errors import RequestError
from netgraft.reports.formats import comma_separated, latex, markdown
from netgraft.reports.tables import Metric, complete_table, long_table, wide_table
from tests.support.result_files import RESULT, TWO_ROWS, body, summaries, write, write_experiment, write_runs


def shown(*arguments: str | Path) -> None:
    command.main([str(argument) for argument in arguments], standalone_mode=False)


def test_the_command_prints_a_wide_table_where_there_are_several_numbers_of_shots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(tmp_path, TWO_ROWS)
    write_runs(tmp_path, "all", [0.1], shots=1)
    shown(tmp_path)
    assert capsys.readouterr().out == markdown(long_table(summaries(tmp_path), "Two rows")) + "\n"
    write_runs(tmp_path, "all", [0.1], shots=10)
    shown(tmp_path)
    assert capsys.readouterr().out == markdown(wide_table(summaries(tmp_path), title="Two rows")) + "\n"
    shown(tmp_path, "--layout", "long", "--format", "latex")
    assert capsys.readouterr().out == latex(long_table(summaries(tmp_path), "Two rows")) + "\n"
    shown(tmp_path, "--format", "csv")
    assert capsys.readouterr().out == comma_separated(complete_table(summaries(tmp_path))) + "\n"


@pytest.mark.parametrize(("metric", "figure"), [("gap", "0.25"), ("top1", "97.75"), ("agreement", "99.00")])
def test_the_command_shows_the_figure_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: Metric, figure: str
) -> None:
    write_runs(tmp_path, "kd", [0.25])
    shown(tmp_path, "--metric", metric)
    assert body(capsys.readouterr().out) == [["kd", figure]]


def test_titles_of_all_experiments_stand_above(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, title in (("one", "First"), ("two", "Second")):
        write_experiment(tmp_path / folder, f'title = "{title}"\n[[run]]\nmethod = "kd"\n')
        write_runs(tmp_path / folder, "kd", [0.1], data=folder)
    shown(tmp_path / "one", tmp_path / "two")
    assert capsys.readouterr().out.startswith("**First / Second**\n")


def test_wide_tables_are_not_wrapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shots in range(1, 31):
        write_runs(tmp_path, "kd", [0.1, 0.2], shots=shots)
    shown(tmp_path)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| kd")]
    assert line.count("0.15 ± 0.07") == 30


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "csv", "--layout", "wide"),
        ("--format", "csv", "--metric", "gap"),
        ("--layout", "long", "--metric", "gap"),
        ("--format", "csv", "--against", "kd"),
        ("--layout", "long", "--against", "kd"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    write_runs(tmp_path, "kd", [0.1])
    with pytest.raises(RequestError, match="leave"):
        shown(tmp_path, *options)


def test_tables_need_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1])
    code = (
        "import sys\nfrom netgraft.cli.table import table\n"
        f"table.main([{str(tmp_path)!r}], standalone_mode=False)\n"
        "print([name for name in ('torch', 'timm', 'numpy', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path, "netgraft", [0.5])
    write_runs(tmp_path, "kd", [0.75])
    shown(tmp_path, "--against", "kd")
    text = capsys.readouterr().out
    assert body(text) == [["netgraft", "-0.25", "-0.25", "1", "-", "-", "-"]]
    assert "\nGap to the teacher in points of top-1: difference from row kd, run by run" in text


def test_each_pair_has_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path / "results", "kd", [0.1], student="small")
    write_runs(tmp_path / "results", "kd", [0.3], student="hub/tiny")
    shown(tmp_path / "results", "--plot", tmp_path / "all.svg")
    captured = capsys.readouterr()
    written = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert written == ["all-digits-hub_tiny.svg", "all-digits-small.svg"]
    assert all(name in captured.err for name in written)
    assert ".svg" not in captured.out
    assert "| small" in captured.out


def test_the_table_is_not_printed_if_there_can_be_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs(tmp_path, "kd", [0.1])
    with pytest.raises(RequestError):
        shown(tmp_path, "--plot", tmp_path / "chart.gif")
    assert capsys.readouterr().out == ""


def test_runs_of_distill_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other files of a run, and runs that aren't finished, are no results."""
    for name, gap in (("one", 0.5), ("two", 0.75)):
        content = {key: value for key, value in RESULT.items() if key not in {"row", "pair"}}
        result = {**content, "gap": gap, "student_top1": 98.0 - gap, "fingerprint": name}
        files = {
            "config.json": {"fingerprint": name},
            "subset.json": {"indices": [1]},
            "derived.json": {"kept": {}},
            "student/config.json": {"architecture": "small"},
            "result.json": result,
        }
        for file, what in files.items():
            path = tmp_path / "runs" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(what))
    unfinished = tmp_path / "runs" / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text('{"fingerprint": "none yet"}')
    shown(tmp_path / "runs")
    whole = body(capsys.readouterr().out)
    assert [(row[0], row[2]) for row in whole] == [("one", "0.50"), ("two", "0.75")]
    shown(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
    assert body(capsys.readouterr().out) == whole
    with pytest.raises(RequestError, match="unfinished holds a run that isn't finished"):
        shown(unfinished)


def test_a_run_without_labels_has_an_agreement_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = dict.fromkeys(("teacher_top1", "student_top1", "gap"))
    write(tmp_path, "only", **nothing, agreement=93.5)
    shown(tmp_path, "--layout", "long")
    assert "93.50" in capsys.readouterr().out
