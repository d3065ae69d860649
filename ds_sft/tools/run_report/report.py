"""The verb: reads a run's folder and writes `report.html`, `report.json` and `report.png`."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds_sft.errors import SaveError
from ds_sft.save.files import replace_file
from ds_sft.tools.run_report.examples import read_examples
from ds_sft.tools.run_report.page import page_of
from ds_sft.tools.run_report.picture import picture_of
from ds_sft.tools.run_report.predictions import read_predictions
from ds_sft.tools.run_report.record import Run, read_run
from ds_sft.tools.run_report.summary import summary_of
from ds_sft.tools.run_report.surroundings import read_surroundings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Args:
        folder: Of the run.
        output_dir: Where the files go; None for the run's own folder.
        num_samples: Most samples to show.
        is_json: The summary as JSON on stdout instead of text.
    """

    folder: Path
    output_dir: Path | None
    num_samples: int
    is_json: bool


def report(wanted: Wanted) -> Iterator[str]:
    """Write the report of a run; nothing in it depends on when or where it is written.

    Args:
        wanted: What is asked for.

    Yields:
        Lines for stdout.
    """
    run = read_run(wanted.folder)
    beside = read_surroundings(run)
    summary = json.dumps(summary_of(run, beside), allow_nan=False, sort_keys=True)
    into = wanted.output_dir or wanted.folder
    page = page_of(run, beside, read_examples(run, num=wanted.num_samples), read_predictions(run.folder))
    for name, content in {
        "report.html": page.encode(),
        "report.json": f"{summary}\n".encode(),
        "report.png": picture_of(run),
    }.items():
        _write(into / name, content)
    yield summary if wanted.is_json else _told(run)
    log.info("next: open %s in a browser", into / "report.html")


def _told(run: Run) -> str:
    losses = [row["loss"] for row in run.rows if row["loss"] is not None]
    course = f", loss {losses[0]:.4f} to {losses[-1]:.4f}" if losses else ""
    return f"{run.folder}: {run.outcome}; {len(run.rows)} rows{course}, {len(run.warnings)} warnings"


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise SaveError(f"output_dir: must be writable, but {path}: {error.strerror}; name another folder") from error
