"""What is drawn, in the coordinates of the page; a value that is not finite is marked and never has a height."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ds_sft.tools.run_report.panels import MEMORY, panels_of
from ds_sft.tools.run_report.record import Kind, Mark, Run, number
from ds_sft.tools.run_report.series import Series, series_of, smoothed

WIDTH, HEIGHT = 1000, 240
_MOST_MARKS = 300
_KINDS: Mapping[Kind, tuple[str, float, float]] = {
    "not finite": ("loss not finite", 0.0, 1.0),
    "left out": ("steps left out", 0.0, 0.1),
    "spike": ("loss spike", 0.1, 0.3),
    "stop": ("stopped or failed", 0.3, 0.6),
    "resume": ("resumed", 0.6, 0.9),
    "save": ("checkpoint saved", 0.9, 1.0),
}
"""In words, and where its mark begins and ends from the top, so that two at one step are both seen."""


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        name: For the legend.
        style: Class of the page.
        path: SVG path data: one `M` or `L` for each finite point with a neighbour.
        dots: The same for points without one: one `M` for each.
    """

    name: str
    style: str
    path: str
    dots: str


@dataclass(frozen=True)
class Strokes:
    """Marks of one kind.

    Args:
        kind: What happened.
        style: Class of the page.
        path: SVG path data: one `M` for each mark.
        num_drawn: How many are drawn.
        num_all: How many there are.
    """

    kind: str
    style: str
    path: str
    num_drawn: int
    num_all: int


@dataclass(frozen=True)
class Plot:
    """A plot.

    Args:
        title: With the unit.
        label: What it shows, in words.
        lines: Of values.
        strokes: Of marks.
        low: Smallest value that is drawn.
        high: Largest one.
        first_step: On the left.
        last_step: On the right.
        num_rows: Rows of the log with this figure.
        num_drawn: Rows that are drawn or marked.
    """

    title: str
    label: str
    lines: Sequence[Line]
    strokes: Sequence[Strokes]
    low: str
    high: str
    first_step: int
    last_step: int
    num_rows: int
    num_drawn: int


@dataclass(frozen=True)
class _Frame:
    """Turns steps and values into coordinates."""

    first: int
    last: int
    low: float
    high: float

    def across(self, step: int) -> float:
        return round(WIDTH * (step - self.first) / max(1, self.last - self.first), 1)

    def down(self, value: float) -> float:
        spread = self.high - self.low
        return round(HEIGHT * (1 - (value - self.low) / spread), 1) if spread > 0 else HEIGHT / 2


def plots_of(run: Run) -> list[Plot]:
    """Draw a run.

    Args:
        run: As read.

    Returns:
        The plots for which there are rows, the loss first.
    """
    raw = series_of(run.rows, "loss")
    evaluations = series_of(run.evaluations, "eval_loss")
    loss = {
        "loss": ("raw", raw),
        "smoothed": ("smooth", smoothed(run.rows, "loss")),
        "evaluation": ("dots", evaluations),
    }
    drawn = [_plot("loss", loss, run.marks)]
    for panel in panels_of(run.rows):
        series = series_of(run.rows, panel.name, factor=panel.factor)
        lines = {panel.title: ("raw", series)}
        planned = number(run.figures.get("planned_memory")) if panel is MEMORY else None
        if planned is not None:
            lines["planned"] = ("planned", _level(planned * panel.factor, series))
        drawn.append(_plot(panel.title, lines, ()))
    return [plot for plot in drawn if plot is not None]


def _level(value: float, series: Series) -> Series:
    """Give one value over all steps of a figure."""
    steps = [step for step, _ in series.points]
    return Series([(step, value) for step in sorted({min(steps), max(steps)})], 1)


def _plot(title: str, named: Mapping[str, tuple[str, Series]], marks: Sequence[Mark]) -> Plot | None:
    main = next(iter(named.values()))[1]
    known = [series for _, series in named.values()]
    steps = [step for series in known for step, _ in series.points]
    if not steps:
        return None
    values = [value for series in known for _, value in series.finite]
    frame = _Frame(min(steps), max(steps), min(values, default=0.0), max(values, default=0.0))
    lines = [_line(name, style, series, frame) for name, (style, series) in named.items() if series.finite]
    low, high = (f"{value:.4g}" if values else "no finite value" for value in (frame.low, frame.high))
    return Plot(
        title=title,
        label=f"{title}, from {low} to {high}, steps {frame.first} to {frame.last}",
        lines=lines,
        strokes=_strokes(marks, frame),
        low=low,
        high=high,
        first_step=frame.first,
        last_step=frame.last,
        num_rows=main.num_rows,
        num_drawn=len(main.points),
    )


def _line(name: str, style: str, series: Series, frame: _Frame) -> Line:
    """Draw a line that breaks where a value is not finite."""
    places = [(None if value is None else f"{frame.across(step)} {frame.down(value)}") for step, value in series.points]
    stretches = [[place for place in group if place] for _, group in groupby(places, lambda place: place is None)]
    if style == "dots":
        stretches = [[place] for stretch in stretches for place in stretch]
    path = "".join("M" + "L".join(stretch) for stretch in stretches if len(stretch) > 1)
    return Line(name, style, path, "".join(f"M{stretch[0]}h0" for stretch in stretches if len(stretch) == 1))


def _strokes(marks: Sequence[Mark], frame: _Frame) -> list[Strokes]:
    found = []
    for kind, (told, top, bottom) in _KINDS.items():
        steps = sorted({mark.step for mark in marks if mark.kind == kind and frame.first <= mark.step <= frame.last})
        drawn = steps[:: -(-len(steps) // _MOST_MARKS)] if steps else []
        path = "".join(f"M{frame.across(step)} {HEIGHT * top:g}V{HEIGHT * bottom:g}" for step in drawn)
        if drawn:
            found.append(Strokes(told, kind.replace(" ", "-"), path, len(drawn), len(steps)))
    return found
