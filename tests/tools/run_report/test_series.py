"""Thinning loses no spike and no gap, and smoothing begins at the first value."""

import pytest

from ds_sft.tools.run_report.series import Point, series_of, smoothed, thinned
from tests.tools.run_report.folders import row


def test_few_points_stay_as_they_are() -> None:
    points: list[Point] = [(1, 2.0), (2, None), (3, 4.0)]
    assert thinned(points) == points


@pytest.mark.parametrize("odd", [1e9, -1e9, None])
@pytest.mark.parametrize("place", [0, 1, 55_555, 99_998, 99_999])
def test_one_odd_value_among_many_is_kept(odd: float | None, place: int) -> None:
    points: list[Point] = [(step, odd if step == place else 1.0) for step in range(100_000)]
    kept = thinned(points, 1200)
    assert (place, odd) in kept
    assert 300 <= len(kept) <= 1500
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})


def test_rows_without_the_figure_are_no_rows_of_it() -> None:
    series = series_of([row(1, 2.0), {"step": 2, "loss": None}, {"step": 3}], "loss", factor=10)
    assert (series.points, series.num_rows) == ([(1, 20.0), (2, None)], 2)


def test_the_smoothed_line_is_a_weighted_mean_of_what_came_before() -> None:
    first, second = 4.0, 1.0
    points = smoothed([row(1, first), row(2, None), row(3, second)], "loss").points
    assert points == [(1, 4.0), (3, pytest.approx((0.9 * first + second) / 1.9))]
