"""The page: one HTML file that needs no network and shows all but its search without JavaScript."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ds_sft.tools.policy import hash_of
from ds_sft.tools.render import heading, shown
from ds_sft.tools.run_report.examples import Examples
from ds_sft.tools.run_report.panels import Panel, panels_of
from ds_sft.tools.run_report.plots import HEIGHT, WIDTH, plots_of
from ds_sft.tools.run_report.predictions import PREDICTED, Predictions
from ds_sft.tools.run_report.record import Row, Run
from ds_sft.tools.run_report.surroundings import Surroundings, without_home
from ds_sft.tools.samples import Sample
from ds_sft.visible import visible

_TEMPLATE = Path(__file__).with_name("page.html")
_MOST_ROWS = 200
_NOT_TOLD = ("event", "time", "step")
_UNITS = {"peak_flops": ("TFLOP/s, measured", 1e12), "planned_memory": ("GiB a rank", 2**30)}
_FACTORS = {"micro": "micro", "accumulation": "accumulate", "ranks": "ranks"}


def page_of(run: Run, beside: Surroundings, examples: Examples, predictions: Predictions) -> str:
    """Make the page.

    Args:
        run: Its log.
        beside: What lies beside the log.
        examples: Its samples.
        predictions: What the model answered.

    Returns:
        HTML; all that comes from files is text, with control characters shown. The same input gives the same bytes.
    """
    template = _TEMPLATE.read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_made_visible)
    return environment.from_string(template).render(
        style_hash=hash_of(template, "style"),
        script_hash=hash_of(template, "script"),
        width=WIDTH,
        height=HEIGHT,
        facts=list(_facts(run)),
        plots=plots_of(run),
        columns=["step", "loss", *(panel.title for panel in panels_of(run.rows))],
        table=_table(run.rows),
        num_rows=len(run.rows),
        lists=list(_lists(run)),
        counters=[(role, _account(told)) for role, told in beside.counters.items()],
        examples_note=without_home(examples.note),
        samples=[_sample(sample) for sample in examples.samples],
        predicted=PREDICTED,
        predictions=predictions,
        files=beside.files,
        files_of=beside.files_of,
        fingerprint=list(beside.facts.items()),
        texts=list(beside.texts.items()),
    )


def _made_visible(value: object) -> object:
    return visible(value) if isinstance(value, str) else value


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    yield "outcome", without_home(run.outcome)
    yield "resumed", f"{run.num_resumes} times"
    for name, value in run.figures.items():
        if name not in _NOT_TOLD and value is not None:
            yield name.replace("_", " "), without_home(_in_words(name, value))


def _in_words(name: str, value: object) -> str:
    if name == "batch" and isinstance(value, dict):
        told = (f"{value.get(part)} {word}" for part, word in _FACTORS.items())
        return f"{value.get('size')} {value.get('unit')} = {' x '.join(told)}"
    if name in _UNITS and isinstance(value, int | float):
        unit, size = _UNITS[name]
        return f"{value / size:.3g} {unit}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else str(value)


def _table(rows: Sequence[Row]) -> list[list[str]]:
    """Give the values in words, evenly picked where there are many."""
    step = -(-len(rows) // _MOST_ROWS) or 1
    shown = [Panel("step", ""), Panel("loss", ""), *panels_of(rows)]
    return [[_cell(row, panel.name, factor=panel.factor) for panel in shown] for row in rows[::step]]


def _cell(row: Row, name: str, *, factor: float = 1.0) -> str:
    if name not in row:
        return ""
    return "not finite" if row[name] is None else f"{factor * row[name]:.6g}"


def _lists(run: Run) -> Iterator[tuple[str, Sequence[tuple[str, ...]], int]]:
    """Give what can be read as a table: title, the last rows, and how many there are."""
    evaluations = [
        tuple(f"{name.removeprefix('eval_')} {_cell(row, name)}" for name in ("step", *_metrics(row)))
        for row in run.evaluations
    ]
    marks = [(f"step {mark.step}", mark.kind, without_home(mark.text)) for mark in run.marks]
    warnings = [(without_home(warning),) for warning in run.warnings]
    tables: dict[str, Sequence[tuple[str, ...]]] = {"Evaluations": evaluations, "Events": marks, "Warnings": warnings}
    for title, rows in tables.items():
        yield title, rows[-_MOST_ROWS:], len(rows)


def _metrics(row: Row) -> list[str]:
    return sorted(name for name in row if name.startswith("eval_"))


def _account(told: Mapping[str, Any]) -> dict[str, Any]:
    counts, rejected = told.get("counters"), told.get("rejected")
    return {
        "data": without_home(str(told.get("data"))),
        "counts": list(counts.items()) if isinstance(counts, dict) else [],
        "rejected": [str(line) for line in rejected] if isinstance(rejected, list) else [],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "heading": heading(sample),
        "sides": [
            {
                "name": side if len(sample.sides) > 1 else "",
                "tokens": sum(piece.num_tokens for piece in pieces),
                "cut": sample.num_cut if side == "target" else 0,
                "pieces": [
                    {
                        "style": " ".join(["tr"] * piece.loss + ["control"] * (piece.kind != "text")),
                        "tokens": piece.num_tokens,
                        "text": shown(piece),
                    }
                    for piece in pieces
                ],
            }
            for side, pieces in sample.sides.items()
        ],
    }
