"""Intervals against the article's formula and published figures."""

from __future__ import annotations

import pytest

from netgraft.errors import RequestError
from netgraft.evaluation.intervals import wilson


@pytest.mark.parametrize(
    ("hits", "images", "expected"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998),
        # table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_the_published_examples(hits: int, images: int, expected: tuple[float, float]) -> None:
    low, high = wilson(hits, images)
    assert low / 100 == pytest.approx(expected[0], abs=5e-5)
    assert high / 100 == pytest.approx(expected[1], abs=5e-5)


@pytest.mark.parametrize(("hits", "images"), [(0, 0), (-1, 10), (11, 10)])
def test_impossible_counts_are_refused(hits: int, images: int) -> None:
    with pytest.raises(RequestError, match=f"got {hits} on {images}; count again"):
        wilson(hits, images)
