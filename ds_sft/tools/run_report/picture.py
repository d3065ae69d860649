"""The picture: loss, learning rate, gradient norm and speed as one PNG."""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ds_sft.tools.run_report.record import Run
from ds_sft.tools.run_report.series import Series, series_of, smoothed

_PANELS = {
    "loss": "loss",
    "learning rate": "learning_rate",
    "gradient norm": "grad_norm",
    "tokens per second": "tokens_per_second",
}


def picture_of(run: Run) -> bytes:
    """Draw a run.

    Args:
        run: Its log.

    Returns:
        A PNG; the same log gives the same bytes. A value that is not finite is a dashed line across, never a height.
    """
    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, name) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        series = series_of(run.rows, name)
        axes.set_title(f"{title} ({len(series.points)} of {series.num_rows} rows)", fontsize=10)
        axes.set_xlabel("step")
        _draw(axes, series, color="tab:gray" if name == "loss" else "tab:blue")
        if name == "loss":
            _draw(axes, smoothed(run.rows, name), color="tab:blue")
            evaluations = series_of(run.evaluations, "eval_loss").finite
            axes.plot(*_columns(evaluations), "o", color="tab:orange", label="evaluation")
            for mark in run.marks:
                if mark.kind in {"resume", "stop"}:
                    axes.axvline(mark.step, color="tab:purple", linestyle=":")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw(axes: Any, series: Series, *, color: str) -> None:
    steps = [step for step, _ in series.points]
    values = [float("nan") if value is None else value for _, value in series.points]
    axes.plot(steps, values, color=color, marker=".", markersize=3)
    for step, value in series.points:
        if value is None:
            axes.axvline(step, color="tab:red", linestyle="--")


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
