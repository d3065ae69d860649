"""What the model answered while it trained, as `predictions.jsonl` of the run's folder has it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_sft.tools.run_report.record import number

PREDICTIONS = "predictions.jsonl"
_MOST = 50
_MOST_CHARACTERS = 1000
PREDICTED = ("place", "question", "expected", "prediction")


@dataclass(frozen=True)
class Predictions:
    """Answers of one step.

    Args:
        rows: Where the sample stands, the question, what was expected, and what came.
        note: What to know of them.
    """

    rows: Sequence[tuple[str, ...]]
    note: str


def read_predictions(folder: Path) -> Predictions:
    """Read the answers of the newest step that has any.

    Args:
        folder: Of the run.

    Returns:
        At most so many as a page can hold; none where there is no such file.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return Predictions([], "")
    newest, num, rows = -1, 0, list[tuple[str, ...]]()
    for told in _lines(path):
        step = int(number(told.get("step")) or 0)
        if step > newest:
            newest, num, rows = step, 0, []
        if step == newest:
            num += 1
            if num <= _MOST:
                rows.append(tuple(_shortened(told.get(name)) for name in PREDICTED))
    if not rows:
        return Predictions([], f"{PREDICTIONS} holds none that can be read.")
    return Predictions(rows, f"{len(rows)} of {num} answers at step {newest}, the newest in {PREDICTIONS}.")


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Give the lines that are objects; a killed run leaves one that is not whole."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                told = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(told, dict):
                yield told


def _shortened(value: object) -> str:
    text = "" if value is None else str(value)
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]} ... {len(text) - _MOST_CHARACTERS} characters more"
