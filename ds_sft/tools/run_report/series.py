"""Numbers of a log as lines: smoothed, and thinned out where there are more than a plot can show."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ds_sft.tools.run_report.record import Row

MOST_POINTS = 1200
_OF_A_STRETCH = 4
"""Its first, last, smallest and largest value, so that no spike is lost."""
_KEPT = 0.9
"""Weight of what came before in the smoothed line."""

Point = tuple[int, float | None]
"""Step and value; None for one that is not finite."""


@dataclass(frozen=True)
class Series:
    """One figure of the log.

    Args:
        points: As many as can be shown.
        num_rows: How many there are.
    """

    points: Sequence[Point]
    num_rows: int

    @property
    def finite(self) -> list[tuple[int, float]]:
        """The points that have a place in a plot."""
        return [(step, value) for step, value in self.points if value is not None]


def series_of(rows: Sequence[Row], name: str, *, factor: float = 1.0) -> Series:
    """Take one figure out of the log.

    Args:
        rows: Of the log.
        name: Of the figure.
        factor: Multiplies it.

    Returns:
        Its values by step, thinned out.
    """
    points = [(row["step"], None if row[name] is None else row[name] * factor) for row in rows if name in row]
    return Series(thinned(points), len(points))


def smoothed(rows: Sequence[Row], name: str) -> Series:
    """Take one figure out of the log, as a mean that forgets.

    Args:
        rows: Of the log.
        name: Of the figure.

    Returns:
        A point for each finite value, thinned out; weights add up to one from the first point on.
    """
    points: list[Point] = []
    total = weight = 0.0
    for row in rows:
        value = row.get(name)
        if value is not None:
            total, weight = _KEPT * total + value, _KEPT * weight + 1.0
            points.append((row["step"], total / weight))
    return Series(thinned(points), len(points))


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Keep what can be seen.

    Args:
        points: In the order of steps.
        most: Points that a plot can show.

    Returns:
        All of them, or of every stretch the first, the last, the smallest, the largest and one that is not finite.
    """
    if len(points) <= most:
        return list(points)
    num_stretches = most // _OF_A_STRETCH
    bounds = [len(points) * number // num_stretches for number in range(num_stretches + 1)]
    kept: list[Point] = []
    for start, end in pairwise(bounds):
        kept += [points[index] for index in sorted(_telling(points, range(start, end)))]
    return kept


def _telling(points: Sequence[Point], stretch: range) -> set[int]:
    values = {index: value for index in stretch if (value := points[index][1]) is not None}
    lost = next((index for index in stretch if index not in values), None)
    told = {stretch[0], stretch[-1]} | ({lost} if lost is not None else set())
    return told | ({min(values, key=values.__getitem__), max(values, key=values.__getitem__)} if values else set())
