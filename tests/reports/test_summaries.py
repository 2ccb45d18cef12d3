"""Results of many cells: what is averaged, in which order it stands, and which files are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from netgraft.errors import RequestError
from netgraft.experiments.results import load
from netgraft.reports.formats import comma_separated, markdown
from netgraft.reports.tables import complete_table, long_table, paired_table, wide_table
from tests.support.result_files import (
    RESULT,
    TWO_ROWS,
    body,
    heading,
    summaries,
    write,
    write_experiment,
    write_runs,
)


def test_a_row_is_mean_and_sample_standard_deviation_over_its_subsets(tmp_path: Path) -> None:
    for number, (gap, agreement, seconds) in enumerate([(0.2, 99.0, 10.0), (0.4, 98.0, 40.0), (0.9, 97.0, 12.0)]):
        figures = {"gap": gap, "student_top1": 98.0 - gap, "agreement": agreement, "seconds": seconds}
        write(tmp_path, str(number), subset_seed=number, seed=number, **figures)
    [summary] = summaries(tmp_path)
    sd = math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2)
    assert summary.gap is not None
    assert summary.top1 is not None
    assert summary.agreement is not None
    assert (summary.gap.mean, summary.gap.sd, summary.gap.n) == (pytest.approx(0.5), pytest.approx(sd), 3)
    assert (summary.top1.mean, summary.top1.sd) == (pytest.approx(97.5), pytest.approx(sd))
    assert (summary.agreement.mean, summary.agreement.sd) == (98.0, 1.0)
    assert summary.seconds == 12.0
    assert summary.n == 3
    line = dict(zip(heading(text := markdown(long_table([summary]))), body(text)[0], strict=True))
    assert line["gap to the teacher"] == "0.50 ± 0.36"
    assert line["top-1"] == "97.50 ± 0.36"
    assert line["agreement"] == "98.00 ± 1.00"
    assert line["n"] == "3"


def test_a_single_run_has_a_mean_alone(tmp_path: Path) -> None:
    write(tmp_path, "one", gap=-0.004)
    text = markdown(wide_table(summaries(tmp_path)))
    assert body(text) == [["kd", "0.00"]]


def test_runs_without_test_images_have_no_accuracy(tmp_path: Path) -> None:
    nothing = {"teacher_top1": None, "student_top1": None, "gap": None, "agreement": None, "test_images": None}
    write(tmp_path, "one", **nothing)
    [summary] = summaries(tmp_path)
    assert summary.gap is None
    text = markdown(wide_table([summary]))
    assert body(text) == [["kd", "-"]]
    assert "accuracy not measured; no labelled test images" in text


def test_long_lines_say_how_it_was_made(tmp_path: Path) -> None:
    write(tmp_path, "a", labels="real: labeled track", init="random", ensemble_top1=98.25, computed_in="bf16")
    text = markdown(long_table(summaries(tmp_path)))
    assert dict(zip(heading(text), body(text)[0], strict=True)) == {
        "row": "kd",
        "shots": "10",
        "gap to the teacher": "0.50",
        "top-1": "97.50",
        "agreement": "99.00",
        "ensemble's top-1": "98.25",
        "n": "1",
        "steps": "1,450",
        "seconds": "10",
        "parameters": "84,650",
        "start": "random",
        "views": "rich",
        "labels": "labeled",
        "precision": "bf16",
    }


def test_derived_students_have_a_gap_before_training_too(tmp_path: Path) -> None:
    for seed, start in enumerate((96.0, 95.0)):
        write(tmp_path, f"derived{seed}", row="derived", start_top1=start, subset_seed=seed, seed=seed)
    write(tmp_path, "unmeasured", row="none", start_top1=None, method="none")
    text = markdown(long_table(summaries(tmp_path)))
    at = heading(text).index("gap before training")
    # 98 minus 95.5, and the spread of two that are one apart
    assert {row[0]: row[at] for row in body(text)} == {"derived": "2.50 ± 0.71", "none": "-"}
    write(tmp_path / "others", "named", row="kd")
    assert "gap before training" not in heading(markdown(long_table(summaries(tmp_path / "others"))))


def test_what_differs_in_more_than_subset_and_seed_is_not_averaged(tmp_path: Path) -> None:
    write(tmp_path, "a", subset_seed=0, settings={"steps": "10"})
    write(tmp_path, "b", subset_seed=1, settings={"steps": "20"})
    with pytest.raises(RequestError, match="row 'kd' at 10 shots differ in settings"):
        summaries(tmp_path)


def test_a_student_chosen_on_the_test_set_is_labelled_in_every_table(tmp_path: Path) -> None:
    chosen = {"selected_on": "test", "selection": "best of 100 looks", "select": "best-on-test", "looks": 100}
    write_runs(tmp_path / "b", "kd", [0.5, 0.7], **chosen)
    write_runs(tmp_path / "a", "kd", [0.6, 0.8])
    write_runs(tmp_path / "a", "at", [0.4])
    found = summaries(tmp_path)
    marked = "kd (chosen on the test set)"
    for text in (markdown(wide_table(found)), markdown(long_table(found)), comma_separated(complete_table(found))):
        assert any(marked in line and "0.6" in line for line in text.splitlines())
    rows = {row[0]: row[1] for row in body(markdown(wide_table(found)))}
    # never averaged with those that were not
    assert rows == {"at": "0.40", "kd": "0.70 ± 0.14", marked: "0.60 ± 0.14"}
    assert "Not alike: selection: best of 100 looks in 'kd (chosen on the test set)'; everywhere else" in markdown(
        long_table(found)
    )
    assert marked in markdown(paired_table(found, "kd"))


def test_students_of_other_numbers_of_looks_are_not_averaged(tmp_path: Path) -> None:
    write(tmp_path, "one", selected_on="test", looks=100)
    write(tmp_path, "two", selected_on="test", looks=50, subset_seed=1)
    with pytest.raises(RequestError, match=r"row 'kd \(chosen on the test set\)' at 10 shots differ in looks"):
        summaries(tmp_path)


def test_no_run_counts_twice(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", "kd", [0.2, 0.4])
    assert [summary.n for summary in summaries(tmp_path / "a", tmp_path / "a", tmp_path)] == [2]
    write(tmp_path / "a", "copy", gap=0.2, subset_seed=1, seed=1)
    with pytest.raises(RequestError, match="two results for subset 1 and seed 1"):
        summaries(tmp_path / "a")


def test_numbers_of_images_and_shots_are_kept_apart(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1], shots=10, images=100)
    write_runs(tmp_path, "kd", [0.2], shots=None, images=100)
    text = markdown(wide_table(summaries(tmp_path)))
    assert heading(text) == ["row", "10 shots", "100 images"]
    assert body(text) == [["kd", "0.10", "0.20"]]


def test_rows_stand_as_in_the_experiment_and_shots_ascend(tmp_path: Path) -> None:
    write_experiment(tmp_path, TWO_ROWS)
    for row in ("all", "dropped", "zero"):
        for shots in (10, 1, 2):
            write_runs(tmp_path, row, [0.1], shots=shots)
    table = summaries(tmp_path)
    assert [(each.row, each.size.number) for each in table] == [
        (row, shots) for row in ("zero", "all", "dropped") for shots in (1, 2, 10)
    ]
    text = markdown(wide_table(table))
    assert heading(text) == ["row", "1 shot", "2 shots", "10 shots"]
    assert [line[0] for line in body(text)] == ["zero", "all", "dropped"]


def test_lines_of_a_pair_stand_together(tmp_path: Path) -> None:
    write_experiment(
        tmp_path,
        """
        [common]
        data = "digits"
        teacher = "big"
        [[pair]]
        name = "second-student"
        student = "tiny"
        [[pair]]
        name = "first-student"
        student = "small"
        [[run]]
        method = ["kd", "at"]
        """,
    )
    for row in ("at", "kd"):
        write_runs(tmp_path / "first-student", row, [0.1], student="small", pair="first-student")
        write_runs(tmp_path / "second-student", row, [0.2], student="tiny", pair="second-student")
    text = markdown(wide_table(summaries(tmp_path)))
    assert heading(text) == ["student", "row", "10 shots"]
    assert body(text) == [
        ["tiny", "kd", "0.20"],
        ["tiny", "at", "0.20"],
        ["small", "kd", "0.10"],
        ["small", "at", "0.10"],
    ]


def test_rows_of_two_experiments_are_never_averaged_together(tmp_path: Path) -> None:
    for folder, gap in (("one", 0.1), ("two", 0.3)):
        write_experiment(tmp_path / folder, TWO_ROWS)
        write_runs(tmp_path / folder, "all", [gap])
    write_runs(tmp_path / "two", "zero", [5.0])
    text = markdown(wide_table(summaries(tmp_path / "one", tmp_path / "two")))
    assert body(text) == [["all [one]", "0.10"], ["zero", "5.00"], ["all [two]", "0.30"]]


def test_a_folder_of_experiments_is_read_like_its_folders(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_experiment(tmp_path / folder, TWO_ROWS)
        for row in ("all", "zero"):
            write_runs(tmp_path / folder, row, [0.1], data=folder)
    assert summaries(tmp_path) == summaries(tmp_path / "one", tmp_path / "two")
    assert [each.row for each in summaries(tmp_path)] == ["zero", "all", "zero", "all"]


def test_same_names_under_different_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x/results", "y/results"):
        write_experiment(tmp_path / folder, TWO_ROWS)
        write_runs(tmp_path / folder, "all", [0.1])
    rows = {each.row for each in summaries(tmp_path / "x/results", tmp_path / "y/results")}
    assert rows == {f"all [{tmp_path / folder}]" for folder in ("x/results", "y/results")}


def test_a_teacher_with_other_weights_is_another_pair(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1])
    write_runs(tmp_path / "other", "kd", [0.2], teacher_digest="f" * 64)
    text = markdown(wide_table(summaries(tmp_path)))
    assert heading(text) == ["teacher's weights", "row", "10 shots"]
    assert sorted(body(text)) == [["0123456789ab", "kd", "0.10"], ["ffffffffffff", "kd", "0.20"]]
    assert len({line.block for line in wide_table(summaries(tmp_path)).lines}) == 2


def test_what_is_not_finished_is_left_out(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1])
    (tmp_path / "work" / "at").mkdir(parents=True)
    (tmp_path / "work" / "at" / "subset.json").write_text("{")
    assert [each.row for each in summaries(tmp_path)] == ["kd"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"row": "kd", ', "is damaged"),
        ("[1, 2]", "holds no result but list"),
        (json.dumps({name: value for name, value in RESULT.items() if name != "gap"}), "no valid gap;"),
        (json.dumps({**RESULT, "gap": "0.5", "steps": None}), "no valid gap, steps;"),
        ("{}", "no valid row, pair, data and 25 more;"),
    ],
    ids=["cut off", "not an object", "lacks a figure", "wrong types", "something else"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    write_runs(tmp_path, "kd", [0.1])
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(RequestError, match=r"remove|give another folder") as error:
        load([tmp_path])
    assert str(error.value).startswith(str(tmp_path / "broken.json"))
    assert said in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match=r"broken\.json is damaged"):
        load([tmp_path])


def test_a_damaged_experiment_is_named(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1])
    write_experiment(tmp_path, "title = ")
    with pytest.raises(RequestError, match=r"experiment\.toml"):
        load([tmp_path])


def test_folders_without_results_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no folder .*missing; give one"):
        load([tmp_path / "missing"])
    with pytest.raises(RequestError, match=r"holds no results \(\*\.json\); give one"):
        load([tmp_path])
    file = write(tmp_path, "one")
    with pytest.raises(RequestError, match=r"there is no folder .*one\.json"):
        load([file])
