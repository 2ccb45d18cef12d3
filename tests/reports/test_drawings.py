"""Scales, ticks and fronts of a report's plots."""

from __future__ import annotations

import itertools
import random

import pytest

from netgraft.reports.drawings import Scale, front, front_plot, loss_plot, round_figures, thinned


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
        (0, 0.43, [0, 0.1, 0.2, 0.3, 0.4]),
        (98.1, 99.4, [98.5, 99.0]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
    ],
)
def test_round_figures_are_those_one_would_write(low: float, high: float, expected: list[float]) -> None:
    assert round_figures(low, high) == pytest.approx(expected)


def test_round_figures_are_few_evenly_spaced_and_inside() -> None:
    draws = random.Random(0)
    for _ in range(300):
        low = draws.uniform(-1, 1) * 10 ** draws.uniform(-3, 6)
        high = low + 10 ** draws.uniform(-3, 7)
        found = round_figures(low, high)
        assert 1 <= len(found) <= 6
        assert low - 1e-6 * (high - low) <= found[0] <= found[-1] <= high + 1e-6 * (high - low)
        steps = [b - a for a, b in itertools.pairwise(found)]
        assert steps == pytest.approx(steps[:1] * len(steps))


def test_scales_go_from_end_to_end() -> None:
    linear, powers = Scale(0, 10, 100, 300), Scale(1e-3, 10, 300, 100, logarithmic=True)
    assert [linear.at(value) for value in (0, 5, 10)] == [100, 200, 300]
    assert [powers.at(value) for value in (1e-3, 0.1, 10)] == [300, 200, 100]
    assert [tick.text for tick in powers.ticks()] == ["0.001", "0.01", "0.1", "1", "10"]
    assert [tick.text for tick in Scale(2, 70, 0, 1, logarithmic=True).ticks()] == ["3", "10", "30"]
    assert Scale(4, 4, 0, 10).at(4) == 5


def test_thin_curves_keep_their_mean_and_all_that_is_short_stays() -> None:
    steps, values = range(1000), [float(number % 7) for number in range(1000)]
    thin = thinned(steps, values, 100)
    assert len(thin) == 100
    assert sum(value for _, value in thin) / 100 == pytest.approx(sum(values) / 1000)
    assert thin[0] == (4.5, pytest.approx(sum(values[:10]) / 10))
    assert thinned([1, 2], [3.0, 4.0]) == [(1.0, 3.0), (2.0, 4.0)]


def test_a_front_is_what_nothing_beats() -> None:
    draws = random.Random(1)
    for _ in range(200):
        count = draws.randint(1, 8)
        sizes = [draws.randint(1, 5) for _ in range(count)]
        figures = [float(draws.randint(1, 5)) for _ in range(count)]
        unbeaten = {
            (sizes[a], figures[a])
            for a in range(count)
            if not any(
                sizes[b] <= sizes[a] and figures[b] >= figures[a] and (sizes[b], figures[b]) != (sizes[a], figures[a])
                for b in range(count)
            )
        }
        found = [(sizes[number], figures[number]) for number in front(sizes, figures)]
        assert set(found) == unbeaten
        assert len(found) == len(unbeaten)


def test_points_at_one_place_share_their_mark() -> None:
    plot = front_plot("", [10, 20, 10], [90.0, 95.0, 90.0], x_label="")
    assert [names for _, _, names in plot.marks] == ["1, 3", "2"]


def test_flat_and_single_losses_are_drawn() -> None:
    for values in ([0.5], [0.0], [-1.0], [2.0, 2.0]):
        plot = loss_plot("", list(range(1, len(values) + 1)), {"loss": values})
        [curve] = plot.curves
        for point in curve.points.split():
            x, y = map(float, point.split(","))
            assert plot.left <= x <= plot.right
            assert plot.top <= y <= plot.bottom
