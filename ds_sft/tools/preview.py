"""`ds-sft preview`: the first samples of a run, token by token what is trained and what is masked."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from ds_sft.data.draft import told
from ds_sft.errors import DataError
from ds_sft.tools.explorer import write_explorer
from ds_sft.tools.inputs import Inputs, read_inputs, say_next
from ds_sft.tools.render import legend, render
from ds_sft.tools.samples import Sample, take_samples

log = logging.getLogger(__name__)

_LITTLE = 0.05
"""A smaller share of trained tokens than this is worth a warning."""


@dataclass(frozen=True)
class Look:
    """How samples are to be shown.

    Args:
        num: Most samples.
        is_json: One object for each sample instead of text.
        is_coloured: Whether the terminal shows styles.
        page: Write a page with all samples here instead.
    """

    num: int
    is_json: bool
    is_coloured: bool
    page: Path | None


def preview(arguments: Sequence[str], look: Look) -> Iterator[str | Text]:
    """Show the first samples that training would see.

    Args:
        arguments: An optional YAML recipe, then flags of training.
        look: How to show them.

    Yields:
        Lines for stdout.

    Raises:
        DataError: When there is no sample.
    """
    inputs = read_inputs(arguments, verb="preview")
    counters: Counter[str] = Counter()
    meagre: list[str] = []
    samples = _watched(take_samples(inputs, num=look.num, counters=counters), meagre)
    if look.page is not None:
        shown = list(samples)
        write_explorer(look.page, shown, counters=counters, name=inputs.records.path.name)
        log.info("wrote %d samples to %s", len(shown), look.page)
        yield from (json_line(sample) for sample in shown if look.is_json)
    elif look.is_json:
        yield from map(json_line, samples)
    else:
        yield legend(is_coloured=look.is_coloured) + Text("\n")
        yield from (render(sample, is_coloured=look.is_coloured) for sample in samples)
    if look.is_json:
        yield json.dumps({"counters": dict(counters)})
    log.info("%s: %s", inputs.records.path, told(counters))
    if meagre:
        log.warning("%d samples train below %.0f %% of their labels, first: %s", len(meagre), 100 * _LITTLE, meagre[0])
    if not counters["samples"]:
        raise _nothing(inputs, counters)
    say_next("train", arguments)


def json_line(sample: Sample) -> str:
    """Give a sample as one line of JSON.

    Args:
        sample: Ids and labels, read back.

    Returns:
        JSON in ASCII, so that no control character of a text reaches a terminal.
    """
    has_sides = len(sample.sides) > 1
    segments = [
        {**({"side": side} if has_sides else {}), "kind": piece.kind, "text": piece.text, "loss": piece.loss}
        for side, pieces in sample.sides.items()
        for piece in pieces
    ]
    return json.dumps(
        {
            "record": sample.record,
            "id": sample.identity,
            "sample": sample.index,
            "input_ids": sample.input_ids,
            "labels": sample.labels,
            "segments": segments,
        }
    )


def _watched(samples: Iterator[Sample], meagre: list[str]) -> Iterator[Sample]:
    """Note the samples that teach next to nothing."""
    for sample in samples:
        if sample.num_trained < _LITTLE * len(sample.labels):
            meagre.append(f"record {sample.record}, sample {sample.index}")
        yield sample


def _nothing(inputs: Inputs, counters: Counter[str]) -> DataError:
    return DataError(
        f"{inputs.records.path}: must hold at least one sample with an answer, but none of {counters['records']} "
        f"records gave one ({told(counters)}); mend the records named above, or raise --model_max_length"
    )
