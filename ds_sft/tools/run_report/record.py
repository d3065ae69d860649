"""Reads what a run left in its folder, whether it finished, crashed, was copied, or is transformers' own."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ds_sft.errors import MissingInputError
from ds_sft.save.events import EVENTS, Event, read_events

Row = dict[str, Any]
Kind = Literal["save", "resume", "stop", "not finite", "left out", "spike"]

STATE = "trainer_state.json"
_OF_A_START = ("start", "resume")
_CHECKPOINT = re.compile(r"checkpoint-\d{1,18}")


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step.

    Args:
        step: Its number.
        kind: What kind of thing.
        text: In words.
    """

    step: int
    kind: Kind
    text: str


@dataclass(frozen=True)
class Run:
    """What a folder tells of a run.

    Args:
        folder: Of the run.
        rows: Of the log, by step; a number that is not finite is None.
        evaluations: The same of evaluations.
        marks: What happened, by step.
        figures: What the run is, as its last start told it; empty for other trainers.
        outcome: How it ended, in words.
        num_resumes: How often it went on.
        warnings: As they were logged.
        checkpoint: The newest one, where there is any.
    """

    folder: Path
    rows: Sequence[Row]
    evaluations: Sequence[Row]
    marks: Sequence[Mark]
    figures: Mapping[str, Any]
    outcome: str
    num_resumes: int
    warnings: Sequence[str]
    checkpoint: Path | None


def read_run(folder: Path) -> Run:
    """Read a run.

    Args:
        folder: Its output folder.

    Returns:
        All that can be known of it.

    Raises:
        MissingInputError: When the folder does not exist or tells of no run.
    """
    if not folder.is_dir():
        raise MissingInputError(f"folder: must exist, but {folder} does not; check the path")
    checkpoints = sorted((path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)), key=_step_of)
    state = _newest_state([folder, *reversed(checkpoints)])
    events = _without_undone(read_events(folder / EVENTS))
    if not state and not events:
        raise MissingInputError(
            f"folder: must hold {STATE}, a checkpoint with one, or {EVENTS}, but {folder} holds none; "
            "name the output_dir of a run"
        )
    history = [row for row in state.get("log_history", []) if isinstance(row, dict)]
    rows = _merged(_of_kind(events, "log"), history, key="loss")
    return Run(
        folder=folder,
        rows=rows,
        evaluations=_merged(_of_kind(events, "evaluation"), history, key="eval_loss"),
        marks=sorted([*_event_marks(events, checkpoints), *_row_marks(rows)], key=lambda mark: mark.step),
        figures=next((event for event in reversed(events) if event["event"] in _OF_A_START), {}),
        outcome=_outcome(events, state),
        num_resumes=len(_of_kind(events, "resume")),
        warnings=[str(event.get("message")) for event in _of_kind(events, "warning")],
        checkpoint=checkpoints[-1] if checkpoints else None,
    )


def number(value: object) -> float | None:
    """Give a number that can be drawn.

    Args:
        value: Anything JSON can hold.

    Returns:
        None for what is not finite or no number.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # NaN is not smaller than anything; an int may be larger than any float.
    return float(value) if abs(value) <= sys.float_info.max else None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of which nothing is expected.

    Args:
        path: Need not exist.

    Returns:
        Its content; empty where it cannot be read or is no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _newest_state(folders: Sequence[Path]) -> dict[str, Any]:
    """Give transformers' record with the most steps; a run that crashed has one in its checkpoints only."""
    states = [read_object(folder / STATE) for folder in folders]
    known = [state for state in states if isinstance(state.get("log_history"), list)]
    return max(known, key=lambda state: number(state.get("global_step")) or 0.0, default={})


def _without_undone(events: Sequence[Event]) -> list[Event]:
    """Leave out what a resume began again: steps behind its checkpoint."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "resume":
            begin = number(event.get("step")) or 0.0
            kept = [old for old in kept if (number(old.get("step")) or 0.0) <= begin]
        kept.append(event)
    return kept


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _of_kind(events: Sequence[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def _merged(events: Sequence[Event], history: Sequence[Row], *, key: str) -> list[Row]:
    """Put both records of a log together; transformers' own counts where both have a step."""
    found: dict[int, Row] = {}
    for row in [*events, *history]:
        step = row.get("step")
        if key in row and isinstance(step, int) and not isinstance(step, bool):
            numbers = {name: number(value) for name, value in row.items() if not isinstance(value, str)}
            found[step] = {**found.get(step, {}), **numbers, key: number(row[key]), "step": step}
    return [found[step] for step in sorted(found)]


def _event_marks(events: Sequence[Event], checkpoints: Sequence[Path]) -> Iterator[Mark]:
    saved = {path.name: _step_of(path) for path in checkpoints}
    last = 0
    for event in events:
        last = int(number(event.get("step")) or last)
        if event["event"] == "save":
            saved[str(event.get("checkpoint"))] = last
        elif event["event"] == "resume":
            yield Mark(last, "resume", f"went on from step {last}")
        elif event["event"] == "end" and event.get("outcome") != "finished":
            yield Mark(last, "stop", str(event.get("reason")))
    for name, step in saved.items():
        yield Mark(step, "save", f"{name} was saved")


def _row_marks(rows: Sequence[Row]) -> Iterator[Mark]:
    for row in rows:
        step = row["step"]
        if row["loss"] is None:
            yield Mark(step, "not finite", "the loss is no finite number")
        if row.get("left_out_steps"):
            yield Mark(step, "left out", f"{row['left_out_steps']:.0f} steps were left out up to here")
        if row.get("loss_spike"):
            yield Mark(step, "spike", f"the loss {row['loss']} stands {row['loss_spike']} deviations above the median")


def _outcome(events: Sequence[Event], state: Mapping[str, Any]) -> str:
    """Say how a run ended; one that was killed had no time to say so."""
    told = [event for event in events if event["event"] in (*_OF_A_START, "end")]
    if not told:
        return f"not known: {EVENTS} is missing; {_progress(state)}"
    if told[-1]["event"] != "end":
        return "cut off, or still running: its record has no end"
    outcome, reason = told[-1].get("outcome"), told[-1].get("reason")
    return re.sub(r"^(\w+): \1 ", r"\1 ", f"{outcome}: {reason}") if reason else str(outcome)


def _progress(state: Mapping[str, Any]) -> str:
    return f"step {state.get('global_step')} of {state.get('max_steps')}"
