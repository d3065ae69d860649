"""The report for machines."""

from dataclasses import asdict
from typing import Any

from ds_sft.tools.run_report.panels import PANELS
from ds_sft.tools.run_report.record import Row, Run
from ds_sft.tools.run_report.series import series_of
from ds_sft.tools.run_report.surroundings import Surroundings, without_home

_FIGURES = ("loss", *(panel.name for panel in PANELS))


def summary_of(run: Run, beside: Surroundings) -> dict[str, Any]:
    """Give the report as plain data.

    Args:
        run: Its log.
        beside: What lies beside the log.

    Returns:
        What JSON can hold. Each of `series` has `points` (step and value, null for what is not finite), as many as the
        page draws, and `num_rows`, how many there are.
    """
    finite = [row for row in run.rows if row["loss"] is not None]
    return {
        "outcome": without_home(run.outcome),
        "num_resumes": run.num_resumes,
        "figures": {
            name: without_home(value) if isinstance(value, str) else value for name, value in run.figures.items()
        },
        "num_rows": len(run.rows),
        "num_rows_not_finite": len(run.rows) - len(finite),
        "first": finite[0] if finite else None,
        "last": finite[-1] if finite else None,
        "lowest": min(finite, key=_loss, default=None),
        "evaluations": list(run.evaluations),
        "series": {
            name: asdict(series_of(run.rows, name)) for name in _FIGURES if any(name in row for row in run.rows)
        },
        "marks": [{**asdict(mark), "text": without_home(mark.text)} for mark in run.marks],
        "warnings": [without_home(warning) for warning in run.warnings],
        "counters": {role: told.get("counters") for role, told in beside.counters.items()},
        "files": [asdict(file) for file in beside.files],
        "files_of": beside.files_of,
    }


def _loss(row: Row) -> float:
    return float(row["loss"])
