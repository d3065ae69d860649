"""Writes the events of a run: what it is, its log, evaluations, checkpoints, warnings, and how it ended."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ds_sft.errors import DsSftError, PreemptedError
from ds_sft.save.events import EVENTS, EventFile
from ds_sft.save.manifest import MANIFEST
from ds_sft.training.checkpoints import without_nan
from ds_sft.training.header import header_lines

log = logging.getLogger(__name__)

Figures = Callable[[Any, Any, TrainerState], dict[str, Any]]
"""Model, arguments and state -> what the run is."""


class Record:
    """The events of one start of a run; those before training begins are kept back until it does.

    Args:
        file: Where they go.
    """

    def __init__(self, file: EventFile) -> None:
        self._file = file
        self._kept_back: list[str] | None = []

    def begin(self, kind: str, **facts: Any) -> None:
        """Write the first event, and what was warned of before it.

        Args:
            kind: `start` or `resume`.
            **facts: What the run is.
        """
        self._file.write(kind, **facts)
        kept_back, self._kept_back = self._kept_back or [], None
        for message in kept_back:
            self.warn(message)

    def write(self, kind: str, **facts: Any) -> None:
        """Write an event of a run that has begun; nothing before that.

        Args:
            kind: Of the event.
            **facts: What belongs to it.
        """
        if self._kept_back is None:
            self._file.write(kind, **facts)

    def warn(self, message: str) -> None:
        """Write a warning.

        Args:
            message: As it was logged.
        """
        if self._kept_back is None:
            self._file.write("warning", message=message)
        else:
            self._kept_back.append(message)


@contextmanager
def recorded(folder: Path, *, is_writer: bool) -> Iterator[Record]:
    """Record a run, its warnings and how it ends.

    Args:
        folder: Of the run.
        is_writer: Whether this rank writes.

    Yields:
        The record.
    """
    file = EventFile(folder / EVENTS if is_writer else None)
    record = Record(file)
    handler = _Warnings(record)
    logger = logging.getLogger("ds_sft")
    logger.addHandler(handler)
    try:
        yield record
        record.write("end", outcome="finished")
    except PreemptedError as error:
        record.write("end", outcome="stopped", reason=str(error))
        raise
    except BaseException as error:
        record.write("end", outcome="failed", reason=_reason(error))
        raise
    finally:
        logger.removeHandler(handler)
        file.close()


class EventsCallback(TrainerCallback):
    """Tells what a run is before its first step, and records what transformers tells of it.

    Args:
        record: Takes the events.
        figures: What the run is, once transformers knows its number of steps.
    """

    def __init__(self, record: Record, figures: Figures) -> None:
        self._record = record
        self._figures = figures

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell what the run is, and where it begins.

        Args:
            args: Of the run.
            state: Its step is above zero after a resume.
            control: Unused.
            **kwargs: With the model.
        """
        if not state.is_world_process_zero:
            return
        figures = self._figures(kwargs["model"], args, state)
        for line in header_lines(figures):
            log.info("%s", line)
        self._record.begin("resume" if state.global_step else "start", step=state.global_step, **figures)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the newest row of the log.

        Args:
            args: Unused.
            state: With the row.
            control: Unused.
            **kwargs: Unused.
        """
        if state.is_world_process_zero and state.log_history:
            row = without_nan(state.log_history[-1])
            kind = "log" if "loss" in row else "evaluation" if "eval_loss" in row else "totals"
            self._record.write(kind, **row)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record a checkpoint that is whole; one that failed has its warning.

        Args:
            args: Names the folder of the run.
            state: Tells the step.
            control: Unused.
            **kwargs: Unused.
        """
        name = f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and (Path(str(args.output_dir)) / name / MANIFEST).is_file():
            self._record.write("save", step=state.global_step, checkpoint=name)


class _Warnings(logging.Handler):
    """Passes warnings of the package on to a record."""

    def __init__(self, record: Record) -> None:
        super().__init__(logging.WARNING)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one on.

        Args:
            record: What was logged.
        """
        self._record.warn(record.getMessage())


def _reason(error: BaseException) -> str:
    told = error.faults[0] if isinstance(error, DsSftError) else str(error)
    return f"{type(error).__name__}: {(told.splitlines() or [''])[0]}"
