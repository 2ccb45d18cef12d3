"""Pictures of results: what is drawn is what was computed, and lines can be told apart."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from netgraft.errors import RequestError
from netgraft.reports.charts import draw, save
from tests.support.result_files import PUBLISHED, TWO_ROWS, summaries, write_experiment, write_runs

OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}


def picture(folder: Path) -> Figure:
    [figure] = draw(summaries(folder)).values()
    return figure


def drawn(axes: Axes) -> dict[str, ErrorbarContainer]:
    """Rows with error bars, by their names in the legend."""
    return {str(each.get_label()): each for each in axes.containers if isinstance(each, ErrorbarContainer)}


def points(row: ErrorbarContainer) -> list[tuple[float, float]]:
    line = style_of(row)
    return list(zip(numbers(line.get_xdata()), numbers(line.get_ydata()), strict=True))


def numbers(values: Any) -> list[float]:
    return [float(value) for value in values]


def bars(row: ErrorbarContainer, axis: int) -> list[tuple[float, float]]:
    """Both ends of each error bar that is drawn."""
    [collection] = row.lines[2]
    assert isinstance(collection, LineCollection)
    return [(float(low[axis]), float(high[axis])) for low, high in filter(len, collection.get_segments())]


def style_of(row: ErrorbarContainer) -> Line2D:
    line = row.lines[0]
    assert isinstance(line, Line2D)
    return line


def lines_at(axes: Axes, values: Sequence[float]) -> list[Line2D]:
    return [line for line in axes.get_lines() if numbers(line.get_ydata()) == list(values)]


def test_points_and_error_bars_are_means_and_standard_deviations(tmp_path: Path) -> None:
    write_runs(tmp_path, "kd", [1.0, 2.0, 3.0], shots=1)  # top-1 97, 96, 95: 96 and 1
    write_runs(tmp_path, "kd", [0.2, 0.6], shots=10)  # 97.8, 97.4: 97.6 and 0.4 / sqrt(2)
    write_runs(tmp_path, "at", [0.5], shots=1)
    write_runs(tmp_path, "at", [0.25, 0.25], shots=10)
    [axes] = picture(tmp_path).axes
    rows = drawn(axes)
    assert sorted(rows) == ["at", "kd"]
    assert points(rows["kd"]) == [(1.0, pytest.approx(96.0)), (10.0, pytest.approx(97.6))]
    half = 0.4 / math.sqrt(2)
    assert bars(rows["kd"], 1) == [pytest.approx((95.0, 97.0)), pytest.approx((97.6 - half, 97.6 + half))]
    assert bars(rows["kd"], 0) == [(1.0, 1.0), (10.0, 10.0)]
    assert points(rows["at"]) == [(1.0, 97.5), (10.0, 97.75)]
    assert bars(rows["at"], 1) == [(97.75, 97.75)]  # a single run has no bar


def test_the_axis_is_logarithmic_with_the_shots_as_ticks(tmp_path: Path) -> None:
    for shots in (1, 2, 5, 50):
        write_runs(tmp_path, "kd", [0.5], shots=shots)
    [axes] = picture(tmp_path).axes
    assert axes.get_xscale() == "log"
    assert [float(tick) for tick in axes.get_xticks()] == [1.0, 2.0, 5.0, 50.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "5", "50"]
    assert len(axes.get_xticks(minor=True)) == 0
    low, high = axes.get_xlim()
    assert 0 < low < 1
    assert high > 50


def test_labels_of_ticks_do_not_collide(tmp_path: Path) -> None:
    for shots in (*range(1, 11), 20, 50):
        write_runs(tmp_path, "kd", [0.5], shots=shots)
    [axes] = picture(tmp_path).axes
    named = [int(text) for label in axes.get_xticklabels() if (text := label.get_text())]
    assert {1, 2, 5, 10, 20, 50} <= set(named)
    assert not {8, 9} & set(named)
    assert len(axes.get_xticks()) == 12


def test_the_teacher_is_dashed_and_what_is_published_dotted(tmp_path: Path) -> None:
    write_experiment(tmp_path, TWO_ROWS + PUBLISHED)
    for shots in (1, 10):
        write_runs(tmp_path, "all", [0.5, 0.7], shots=shots)
    [axes] = picture(tmp_path).axes
    [teacher] = lines_at(axes, [98.0, 98.0])
    assert teacher.get_linestyle() == "--"
    rows = drawn(axes)
    assert list(rows) == ["all", "Theirs\n(published, teacher 92.83 %)", "Elsewhere\n(published)"]
    published, elsewhere = list(rows.values())[1:]
    assert points(published) == [(1.0, 90.74), (10.0, 92.89)]
    assert bars(published, 1) == [pytest.approx((90.25, 91.23)), pytest.approx((92.83, 92.95))]
    assert points(elsewhere) == [(10.0, 88.15)]
    assert style_of(published).get_linestyle() == style_of(elsewhere).get_linestyle() == ":"
    assert style_of(rows["all"]).get_linestyle() not in {":", "None"}
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text().partition("\n")[0] for text in legend.get_texts()] == [
        "teacher, 98.00 %",
        "all",
        "Theirs",
        "Elsewhere",
    ]


def test_eight_rows_differ_in_colour_and_marker_and_line_style(tmp_path: Path) -> None:
    for row in "abcdefgh":
        for shots in (1, 10):
            write_runs(tmp_path, row, [0.5], shots=shots)
    [axes] = picture(tmp_path).axes
    styles = [style_of(row) for row in drawn(axes).values()]
    assert {to_hex(line.get_color()) for line in styles} == OKABE_ITO
    assert len({str(line.get_marker()) for line in styles}) == 8
    # matplotlib has no public name for the dashes of a line
    assert len({str(line._unscaled_dash_pattern) for line in styles}) == 8  # type: ignore[attr-defined]


def test_more_rows_have_a_panel_each(tmp_path: Path) -> None:
    names = "abcdefghi"
    for number, row in enumerate(names):
        for shots in (1, 10):
            write_runs(tmp_path, row, [0.1 * number + 1 / shots, 0.1 * number + 2 / shots], shots=shots)
    panels = picture(tmp_path).axes
    assert [axes.get_title() for axes in panels] == list(names)
    for number, axes in enumerate(panels):
        [own] = drawn(axes).values()
        assert points(own) == [
            (1.0, pytest.approx(98 - 0.1 * number - 1.5)),
            (10.0, pytest.approx(98 - 0.1 * number - 0.15)),
        ]
        others = [line for line in axes.get_lines() if line.get_label() == "all others"]
        assert len(others) == 8
        assert {to_hex(line.get_color()) for line in others} == {"#bbbbbb"}
        assert [line.get_linestyle() for line in lines_at(axes, [98.0, 98.0])] == ["--"]
        assert axes.get_ylim() == panels[0].get_ylim()
    # the last panel of each column says what is on the axis
    assert [axes.get_xlabel() for axes in panels] == [""] * 5 + ["images a class"] * 4


def test_one_number_of_shots_gives_rows_sorted_by_gap(tmp_path: Path) -> None:
    write_experiment(tmp_path, TWO_ROWS + PUBLISHED)
    write_runs(tmp_path, "zero", [0.5, 0.7])
    write_runs(tmp_path, "all", [-0.2])
    [axes] = picture(tmp_path).axes
    rows = drawn(axes)
    # published at 10 shots: 92.83 - 92.89; the other has no teacher, so no gap
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "Theirs (published)", "zero"]
    assert points(rows["all"]) == [(pytest.approx(-0.2), 0.0)]
    assert points(rows["Theirs"]) == [(pytest.approx(-0.06), 1.0)]
    assert points(rows["zero"]) == [(pytest.approx(0.6), 2.0)]
    half = 0.2 / math.sqrt(2)
    assert bars(rows["zero"], 0) == [pytest.approx((0.6 - half, 0.6 + half))]
    assert bars(rows["Theirs"], 0) == [pytest.approx((-0.12, 0.0))]
    assert bars(rows["all"], 0) == []
    bottom, top = axes.get_ylim()
    assert bottom > 2 > 0 > top  # the smallest gap on top
    title = axes.get_figure(root=True)
    assert title is not None
    assert "Elsewhere" in title.get_suptitle()


def test_a_row_far_behind_is_a_number_at_the_edge(tmp_path: Path) -> None:
    for row, gap in (("a", 0.1), ("b", 0.4), ("c", 1.0), ("none", 88.0)):
        write_runs(tmp_path, row, [gap])
    [axes] = picture(tmp_path).axes
    assert sorted(drawn(axes)) == ["a", "b", "c"]
    assert axes.get_xlim()[1] < 3
    assert [text.get_text() for text in axes.texts] == ["88.0 →"]
    assert axes.texts[0].xy[1] == 3  # type: ignore[attr-defined]


def test_a_line_far_below_is_named_in_the_legend(tmp_path: Path) -> None:
    for shots in (1, 10):
        for row, gap in (("a", 0.1), ("b", 0.4), ("c", 0.5), ("none", 88.0 - shots)):
            write_runs(tmp_path, row, [gap], shots=shots)
    [axes] = picture(tmp_path).axes
    assert axes.get_ylim()[0] > 95
    assert "none\n(below: 11.0 at 1, 20.0 at 10)" in drawn(axes)


def test_of_few_rows_all_are_to_scale(tmp_path: Path) -> None:
    for shots in (1, 10):
        for row, gap in (("a", 0.1), ("b", 0.4), ("c", 5.0)):
            write_runs(tmp_path, row, [gap], shots=shots)
    [axes] = picture(tmp_path).axes
    assert axes.get_ylim()[0] < 93
    assert sorted(drawn(axes)) == ["a", "b", "c"]


def test_rows_that_spread_widely_are_all_to_scale(tmp_path: Path) -> None:
    for shots, worse in ((1, 30.0), (10, 0.0)):
        for row, gap in (("a", 1.0), ("b", 4.0), ("c", 12.0)):
            write_runs(tmp_path, row, [gap + worse], shots=shots)
    [axes] = picture(tmp_path).axes
    assert axes.get_ylim()[0] < 98 - 42
    assert sorted(drawn(axes)) == ["a", "b", "c"]


@pytest.mark.parametrize(("suffix", "beginning"), [(".png", b"\x89PNG\r\n"), (".svg", b"<?xml")])
def test_the_suffix_says_the_format(tmp_path: Path, suffix: str, beginning: bytes) -> None:
    write_runs(tmp_path / "results", "kd", [0.1, 0.2])
    place = tmp_path / f"picture{suffix}"
    assert save(summaries(tmp_path / "results"), place) == [place]
    first = place.read_bytes()
    assert first.startswith(beginning)
    save(summaries(tmp_path / "results"), place)
    assert place.read_bytes() == first  # a file that is kept with results changes only with them


def test_names_are_no_formulas(tmp_path: Path) -> None:
    write_runs(tmp_path, "$x_{$", [0.1])
    [place] = save(summaries(tmp_path), tmp_path / "picture.svg")
    assert place.exists()


def test_shots_and_numbers_of_images_are_not_on_one_axis(tmp_path: Path) -> None:
    for size in (1, 10):
        write_runs(tmp_path, "kd", [0.1], shots=size)
        write_runs(tmp_path, "kd", [0.2], shots=None, images=100 * size)
    pictures = draw(summaries(tmp_path))
    assert {name: [float(x) for x in each.axes[0].get_xticks()] for name, each in pictures.items()} == {
        "digits-small-shots": [1.0, 10.0],
        "digits-small-images": [100.0, 1000.0],
    }
    assert pictures["digits-small-images"].axes[0].get_xlabel() == "images"


def test_two_teachers_have_two_pictures(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", "kd", [0.1])
    write_runs(tmp_path / "b", "kd", [0.2], teacher_digest="f" * 64)
    assert set(draw(summaries(tmp_path))) in (
        {"digits-small", "digits-small-ffffffffffff"},
        {"digits-small", "digits-small-0123456789ab"},
    )


def test_wrong_requests_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(tmp_path, "kd", [0.1])
    table = summaries(tmp_path)
    with pytest.raises(RequestError, match=r"expected a picture called \*.png or \*.svg, got .*chart\.pdf"):
        save(table, tmp_path / "chart.pdf")
    with pytest.raises(RequestError, match=r"there is no folder .*missing"):
        save(table, tmp_path / "missing" / "chart.png")
    nothing: dict[str, Any] = {"teacher_top1": None, "student_top1": None, "gap": None, "agreement": None}
    write_runs(tmp_path / "unmeasured", "kd", [0.1], **nothing)
    with pytest.raises(RequestError, match="no accuracies to draw"):
        save(summaries(tmp_path / "unmeasured"), tmp_path / "chart.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RequestError, match=r"pip install 'netgraft\[plot\]'"):
        save(table, tmp_path / "chart.png")
    assert not list(tmp_path.glob("*.png"))
