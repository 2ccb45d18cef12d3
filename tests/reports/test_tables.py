"""Tables of results: published figures, what is said below, how they are written."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from netgraft.errors import RequestError
from netgraft.reports.formats import comma_separated, latex, markdown
from netgraft.reports.tables import complete_table, long_table, wide_table
from tests.support.result_files import (
    DIGEST,
    PUBLISHED,
    TWO_ROWS,
    body,
    heading,
    summaries,
    write,
    write_experiment,
    write_runs,
)


def test_published_figures_are_lines_with_footnotes(tmp_path: Path) -> None:
    write_experiment(tmp_path, TWO_ROWS + PUBLISHED)
    write_runs(tmp_path, "all", [0.1, 0.3], shots=10)
    write_runs(tmp_path, "zero", [9.0], shots=1)
    table = summaries(tmp_path)
    text = markdown(wide_table(table))
    assert heading(text) == ["row", "1 shot", "10 shots"]
    assert body(text) == [
        ["zero", "9.00", "-"],
        ["all", "-", "0.20 ± 0.14"],
        ["Theirs (published)¹", "2.09 ± 0.49", "-0.06 ± 0.06"],
        ["Elsewhere (published)²", "-", "-"],
    ]
    assert "\n¹ published: Someone et al., 2021; teacher 92.83 %; n = 5; best epoch\n" in text
    assert "\n² published: Table 2; its teacher's accuracy is not given\n" in text
    assert body(markdown(wide_table(table, "top1")))[2:] == [
        ["Theirs (published)¹", "90.74 ± 0.49", "92.89 ± 0.06"],
        ["Elsewhere (published)²", "-", "88.15"],
    ]


def test_where_nothing_was_measured_a_wide_table_has_no_column(tmp_path: Path) -> None:
    write_experiment(tmp_path, TWO_ROWS + PUBLISHED)
    write_runs(tmp_path, "all", [0.1, 0.3], shots=10)
    text = markdown(wide_table(summaries(tmp_path)))
    assert heading(text) == ["row", "10 shots"]
    assert "\n\nPublished, but not measured here: 1 shot.\n\n" in text
    assert "2.09 ± 0.49" in markdown(long_table(summaries(tmp_path)))


def test_a_published_figure_stands_beside_its_pair_alone(tmp_path: Path) -> None:
    pairs = """
    [[pair]]
    name = "a"
    student = "small"
    [[pair]]
    name = "b"
    student = "tiny"
    [[pair]]
    name = "unfinished"
    student = "huge"
    [[run]]
    method = "kd"
    [[published]]
    name = "Theirs"
    source = "there"
    shots = 10
    top1 = 90
    """
    write_runs(tmp_path, "kd", [0.1], student="small", pair="a")
    write_runs(tmp_path, "kd", [0.2], student="tiny", pair="b")
    expected: dict[str, list[tuple[str, str]]] = {
        "a": [("small", "kd"), ("small", "Theirs"), ("tiny", "kd")],
        "b": [("small", "kd"), ("tiny", "kd"), ("tiny", "Theirs")],
        "unfinished": [("small", "kd"), ("tiny", "kd")],
    }
    for name, lines in expected.items():
        write_experiment(tmp_path, f'{pairs}\npair = "{name}"')
        assert [(each.pair.student, each.row) for each in summaries(tmp_path)] == lines
    write_experiment(tmp_path, f'{pairs}\npair = "c"')
    with pytest.raises(RequestError, match=r"'Theirs' belongs to the pair 'c', .* choose from a, b, unfinished"):
        summaries(tmp_path)
    write_experiment(tmp_path, pairs)
    with pytest.raises(RequestError, match=r"'Theirs' could belong to big -> small on digits or big -> tiny on digits"):
        summaries(tmp_path)


def test_what_is_alike_is_said_once_below(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1, 0.2])
    *_, notes = markdown(wide_table(summaries(tmp_path))).split("\n\n")
    assert notes == (
        "Alike in all cells: teacher big (0123456789ab), 98.00 %; 600 test images; selection: none: last iterate; "
        "netgraft 0.1.0, torch 2.15.0; cpu (AMD EPYC) with 1 thread; 2 subsets; 1,450 steps; start: slice; "
        "views: rich; unlabeled track; precision: 32."
    )


def test_what_is_not_alike_is_said_with_its_place(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1, 0.2], shots=1)
    write_runs(tmp_path, "kd", [0.1], shots=10)
    write_runs(tmp_path, "at", [0.1, 0.2], shots=10, threads=2)
    write_runs(tmp_path, "none", [0.1, 0.2], shots=10)
    text = markdown(long_table(summaries(tmp_path)))
    assert "Not alike: cpu (AMD EPYC) with 2 threads in 'at'; everywhere else cpu (AMD EPYC) with 1 thread." in text
    assert "Not alike: 1 subset in 'kd' at 10 shots; everywhere else 2 subsets." in text
    assert "thread;" not in next(line for line in text.splitlines() if line.startswith("Alike"))


def test_what_holds_at_one_number_of_images_is_said_of_it(tmp_path: Path) -> None:
    for row in ("kd", "at", "none"):
        write_runs(tmp_path, row, [0.1], shots=1)
        write_runs(tmp_path, row, [0.1, 0.2], shots=5)
        write_runs(tmp_path, row, [0.1], shots=10)
    assert "Not alike: 2 subsets in all rows at 5 shots; everywhere else 1 subset." in markdown(
        wide_table(summaries(tmp_path))
    )


def test_the_machine_is_named_where_results_name_it(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1], device="cuda:0", machine="NVIDIA H100", threads=2)
    assert "; cuda:0 (NVIDIA H100) with 2 threads;" in markdown(wide_table(summaries(tmp_path)))


def test_what_belongs_to_a_data_set_is_said_of_it(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [0.1])
    write_runs(tmp_path, "at", [0.1])
    write_runs(tmp_path, "kd", [0.1], data="cifar10", test_images=10000)
    text = markdown(long_table(summaries(tmp_path)))
    assert "Not alike: 10,000 test images in cifar10; everywhere else 600 test images." in text


def test_runs_that_share_subsets_are_counted(tmp_path: Path) -> None:
    for seed in (0, 1):
        for subset in (0, 1, 2):
            write(tmp_path, f"{subset}-{seed}", subset_seed=subset, seed=seed)
    assert "; 3 subsets, 6 runs;" in markdown(wide_table(summaries(tmp_path)))


def test_latex_escapes_what_latex_would_read(tmp_path: Path) -> None:
    write_experiment(tmp_path, 'title = "50% of_it & more"\n[[run]]\nmethod = "kd"\n')
    write_runs(tmp_path, r"[a_b] & 50% #1 {x} $y ~z^2 \w <v>", [-0.1, -0.3])
    text = latex(wide_table(summaries(tmp_path), title="50% of_it & more"))
    row = (
        r"{[}a\_b] \& 50\% \#1 \{x\} \$y \textasciitilde{}z\textasciicircum{}2 \textbackslash{}w "
        r"\textless{}v\textgreater{} & $-0.20 \pm 0.14$ \\"
    )
    assert row in text.splitlines()
    assert r"\caption{50\% of\_it \& more}" in text
    assert r"mean $\pm$ sample standard deviation" in text
    assert [line for line in text.splitlines() if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\begin{tabular}{lr}" in text
    assert text.count("{") == text.count("}")


def test_latex_has_a_rule_between_pairs_and_marks_what_is_published(tmp_path: Path) -> None:
    write_experiment(tmp_path / "one", TWO_ROWS + PUBLISHED)
    write_runs(tmp_path / "one", "all", [0.1, 0.3])
    write_runs(tmp_path / "two", "kd", [0.5], data="cifar10")
    write_runs(tmp_path / "two", "kd", [0.7], data="cifar10", shots=1)
    lines = latex(wide_table(summaries(tmp_path / "one", tmp_path / "two"))).splitlines()
    first = lines.index(r"digits & all & - & $0.20 \pm 0.14$ \\")
    assert lines[first + 1 : first + 5] == [
        r"digits & Theirs (published)\textsuperscript{1} & $2.09 \pm 0.49$ & $-0.06 \pm 0.06$ \\",
        r"digits & Elsewhere (published)\textsuperscript{2} & - & - \\",
        r"\midrule",
        r"cifar10 & kd & $0.70$ & $0.50$ \\",
    ]
    assert any(
        line.startswith(r"\textsuperscript{1} published: Someone et al., 2021; teacher 92.83 \%") for line in lines
    )


def test_markdown_keeps_its_columns_whatever_the_names_are(tmp_path: Path) -> None:
    write_runs(tmp_path, "a|b*c\nd", [0.1])
    lines = markdown(wide_table(summaries(tmp_path))).splitlines()
    assert r"| a\|b\*c d |     0.10 |" in lines
    assert len({len(line) for line in lines[:3]}) == 1


def test_csv_holds_unrounded_what_was_read(tmp_path: Path) -> None:
    gaps = {("kd", 1): [0.123456789], ("kd", 10): [0.1, 0.2], ('with "quotes", and commas', 10): [1 / 3, 2 / 3]}
    for (row, shots), values in gaps.items():
        write_runs(tmp_path, row, values, shots=shots, images=10 * shots)
    lines = list(csv.DictReader(io.StringIO(comma_separated(complete_table(summaries(tmp_path))))))
    assert len(lines) == 3
    for line in lines:
        values = gaps[line["row"], int(line["shots"])]
        mean = sum(values) / len(values)
        assert float(line["gap_mean"]) == pytest.approx(mean, rel=1e-14)
        assert float(line["top1_mean"]) == pytest.approx(98 - mean, rel=1e-14)
        assert int(line["gap_n"]) == int(line["n"]) == len(values)
        if len(values) == 1:
            assert line["gap_sd"] == ""
        else:
            assert float(line["gap_sd"]) == pytest.approx(abs(values[1] - values[0]) / math.sqrt(2), rel=1e-12)
        assert (line["data"], line["teacher"], line["student"]) == ("digits", "big", "small")
        assert (line["teacher_digest"], float(line["teacher_top1"])) == (DIGEST[:12], 98.0)
        assert int(line["images"]) == 10 * int(line["shots"])
        assert (line["steps"], line["parameters"], line["seconds"]) == ("1450", "84650", "10.0")
        assert (line["init"], line["views"], line["labels"], line["precision"]) == ("slice", "rich", "unlabeled", "32")
        assert line["ensemble_top1_mean"] == line["source"] == ""


def test_csv_names_the_source_of_what_is_published(tmp_path: Path) -> None:
    write_experiment(tmp_path, TWO_ROWS + PUBLISHED)
    write_runs(tmp_path, "all", [0.1])
    lines = list(csv.DictReader(io.StringIO(comma_separated(complete_table(summaries(tmp_path))))))
    assert [(line["row"], line["shots"], line["source"], line["conditions"]) for line in lines] == [
        ("all", "10", "", ""),
        ("Theirs", "1", "Someone et al., 2021", "best epoch"),
        ("Theirs", "10", "Someone et al., 2021", "best epoch"),
        ("Elsewhere", "10", "Table 2", ""),
    ]
    assert (float(lines[1]["top1_mean"]), float(lines[1]["top1_sd"]), lines[1]["n"]) == (90.74, 0.49, "5")
    assert float(lines[2]["gap_mean"]) == pytest.approx(92.83 - 92.89)
    assert lines[3]["gap_mean"] == ""


def test_what_the_rows_are_called_by_is_not_said_again(tmp_path: Path) -> None:
    """Unless it isn't said by all of them."""
    write_runs(tmp_path, "kd, slice", [0.1, 0.2], init="slice")
    write_runs(tmp_path, "kd, random", [0.3, 0.4], init="random")
    assert "start:" not in markdown(wide_table(summaries(tmp_path)))
    write_runs(tmp_path, "at", [0.3, 0.4], init="random")
    assert "start: slice in 'kd, slice'; everywhere else start: random" in markdown(wide_table(summaries(tmp_path)))


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([(0, 0), (1, 1)], "holds subset and training seed together."),
        ([(0, 0), (0, 1), (1, 0), (1, 1)], "holds subset and training seed together."),
        ([(0, 5), (1, 5)], "holds subsets alone (one training seed)."),
        ([(3, 0), (3, 1)], "holds training seeds alone (one subset)."),
    ],
)
def test_what_a_standard_deviation_holds_is_said_below(tmp_path: Path, seeds: list[tuple[int, int]], said: str) -> None:
    for subset, seed in seeds:
        write(tmp_path, f"{subset}-{seed}", subset_seed=subset, seed=seed)
    for table in (wide_table(summaries(tmp_path)), long_table(summaries(tmp_path))):
        assert table.notes[0].endswith(f" ± of what was measured here {said}")


def test_single_runs_have_no_standard_deviation_to_explain(tmp_path: Path) -> None:
    write(tmp_path, "alone", subset_seed=2, seed=0)
    assert "±" not in wide_table(summaries(tmp_path)).notes[0].partition("standard deviation.")[2]
