"""`ds-sft validate`: looks at every record of a data file with all cores and tells what training would make of it."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ds_sft.data.workers import num_cores, spread
from ds_sft.errors import DataError
from ds_sft.tools.findings import Findings, find
from ds_sft.tools.inputs import Inputs, read_inputs, say_next
from ds_sft.tools.report import as_dict, as_lines, rejected_places

log = logging.getLogger(__name__)

_BYTES_OF_A_STRETCH = 1 << 18
_BYTES_OF_ONE_PROCESS = 1 << 21
"""A smaller file is done before another process has started."""
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Effort:
    """How a file is to be validated.

    Args:
        is_json: One JSON object instead of text.
        num_workers: Most processes; 0 for one a core.
    """

    is_json: bool
    num_workers: int


def validate(arguments: Sequence[str], effort: Effort) -> Iterator[str]:
    """Look at every record.

    Args:
        arguments: An optional YAML recipe, then flags of training.
        effort: How.

    Yields:
        Lines for stdout.

    Raises:
        DataError: When training would find nothing to learn from, or a rejected record with --strict_data.
    """
    inputs = read_inputs(arguments, verb="validate")
    findings = find_everywhere(inputs, num_workers=effort.num_workers or num_cores())
    path = str(inputs.records.path)
    if effort.is_json:
        yield json.dumps(as_dict(findings, path=path))
    else:
        yield from as_lines(findings, path=path)
    counters, rejected = findings.counters, rejected_places(findings)
    if not counters["tokens_supervised"]:
        raise DataError(
            f"{path}: must hold at least one sample with an answer, but none of {counters['records']} records gave "
            "one; mend these records, or raise --model_max_length",
            *rejected,
        )
    if inputs.is_strict and rejected:
        raise DataError(*(f"{told}; mend it or drop --strict_data" for told in rejected))
    say_next("preview", arguments)


def find_everywhere(inputs: Inputs, *, num_workers: int) -> Findings:
    """Look at every record of a file.

    Args:
        inputs: Data, family and tokenizer.
        num_workers: Most processes.

    Returns:
        What was found, the same whatever the number of processes.
    """
    num_records, spans = len(inputs.records), inputs.records.boundaries.spans
    num_bytes = int((spans[:, 1] - spans[:, 0]).sum())
    step = max(1, num_records * _BYTES_OF_A_STRETCH // max(1, num_bytes))
    stretches = [range(start, min(start + step, num_records)) for start in range(0, num_records, step)]
    findings = Findings()
    results = spread(find, inputs, stretches, num_workers=num_workers if num_bytes > _BYTES_OF_ONE_PROCESS else 1)
    for new in _told_progress(results, num_records):
        findings.add(new)
    return findings


def _told_progress(results: Iterator[Findings], num_records: int) -> Iterator[Findings]:
    """Show a bar on a terminal, and a line now and then elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _told_lines(results, num_records)
        return
    columns = (TextColumn("records"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("records", total=num_records)
        for new in results:
            progress.advance(task, new.counters["records"])
            yield new


def _told_lines(results: Iterator[Findings], num_records: int) -> Iterator[Findings]:
    done, told = 0, time.monotonic()
    for new in results:
        done += new.counters["records"]
        if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            log.info("%d of %d records", done, num_records)
        yield new
