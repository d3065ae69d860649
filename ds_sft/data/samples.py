"""From some records of a data file to rows of a table: their samples, or only where these come from."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa

from ds_sft.contracts import IGNORE_INDEX, Conversation, Draft, Example, Rejection
from ds_sft.data.draft import Encoder, draft_conversation, told_rejection
from ds_sft.data.forms import decode, identity_of, turns_of
from ds_sft.data.read import RecordFile
from ds_sft.data.table import Integers, pack, ragged

_IDS = pa.list_(pa.int32())
_SHARED = pa.field("shared", pa.int32())
SAMPLES = pa.schema([pa.field("source", _IDS), pa.field("target", _IDS), pa.field("runs", _IDS), _SHARED])
"""Rows of tokenised samples.

`source` is what the encoder reads, empty without one. `runs` tells how many tokens of `target` are not supervised, how
many then are, and so on in turns: the labels are these tokens once more and not stored. `shared` is the number of
tokens with which it begins as the sample before it of the same conversation does, 0 with an encoder.
"""
PLACES = pa.schema(
    {"start": pa.int64(), "end": pa.int64(), "number": pa.int64(), "nth": pa.int32(), "size": pa.int32()}
)
"""Rows of samples that are made on access: bytes and number of the record, which of its samples, its characters."""
COUNTED_PLACES = pa.schema(
    [*list(PLACES)[:-1], pa.field("source", pa.int32()), pa.field("target", pa.int32()), _SHARED]
)
"""The same with the tokens of source (0 without one) and target instead of the characters, and with `shared`."""

_PARCEL_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Parcel:
    """Some records of a data file that follow each other, to be sent to another process.

    Args:
        text: The bytes from the first record's start to the last one's end.
        spans: Start and end of each record in the file, shape [records, 2].
        numbers: What each record is numbered in messages to the user.
        unit: What is numbered.
    """

    text: bytes
    spans: Integers
    numbers: Sequence[int]
    unit: str

    def conversations(self) -> Iterator[Conversation]:
        """Decode the records.

        Yields:
            The conversations; their places do not name the file.
        """
        first = int(self.spans[0, 0])
        for (start, end), number in zip(self.spans.tolist(), self.numbers, strict=True):
            record = decode(self.text[start - first : end - first])
            yield Conversation(turns_of(record), f"{self.unit} {number}", identity_of(record))


@dataclass
class Packed:
    """What some records became.

    Args:
        batch: Of a table; empty until all records were seen.
        num_records: How many there were.
        counters: What was made, dropped and cut.
        rejected: Place and reason of each rejected record.
    """

    num_records: int
    batch: bytes = b""
    counters: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)


def parcels_of(records: RecordFile) -> Iterator[Parcel]:
    """Cut a data file into parcels of a mebibyte or, where a record is larger, of one record.

    Args:
        records: The data file.

    Yields:
        The parcels in order.
    """
    spans, numbers = records.boundaries.spans, records.boundaries.numbers
    first = 0
    while first < len(spans):
        start = int(spans[first, 0])
        behind = max(first + 1, int(np.searchsorted(spans[:, 1], start + _PARCEL_BYTES, side="right")))
        text = bytes(records.content.part(start, int(spans[behind - 1, 1])))
        yield Parcel(text, spans[first:behind], list(map(int, numbers[first:behind])), records.boundaries.unit)
        first = behind


def tokenise(encoder: Encoder, parcel: Parcel) -> Packed:
    """Make the samples of some records.

    Args:
        encoder: Family, tokenizer and layout.
        parcel: The records.

    Returns:
        Rows of `SAMPLES`.
    """
    packed = Packed(len(parcel.spans))
    sources, targets, runs = _Rows(), _Rows(), _Rows()
    shared = array("i")
    for draft, example, common in (
        sample for drafts in _drafts(encoder, parcel, packed) for sample in _samples(encoder, drafts)
    ):
        source, target = (example.input_ids, example.labels) if draft.source else ((), example.input_ids)
        lengths = run_lengths(example.labels)
        sources.add(source)
        targets.add(target)
        runs.add(lengths)
        shared.append(common)
        packed.counters["tokens_total"] += len(source) + len(target)
        packed.counters["tokens_supervised"] += sum(lengths[1::2])
        packed.counters["tokens_truncated"] += _num_cut(encoder, draft, len(target))
    columns = {"source": sources.column(), "target": targets.column(), "runs": runs.column()}
    packed.batch = pack(SAMPLES, {**columns, "shared": pa.array(np.asarray(shared), pa.int32())})
    return packed


def locate(encoder: Encoder, parcel: Parcel) -> Packed:
    """Tell where the samples of some records come from, tokenising only what may be too long.

    Args:
        encoder: Family, tokenizer and layout.
        parcel: The records.

    Returns:
        Rows of `PLACES`; `measured_records` counts those of which something was tokenised.
    """
    return _located(encoder, parcel, PLACES, lambda drafts: [(_num_characters(draft),) for draft in drafts])


def locate_and_count(encoder: Encoder, parcel: Parcel) -> Packed:
    """Tell where the samples of some records come from, and how many tokens they have.

    Args:
        encoder: Family, tokenizer and layout.
        parcel: The records.

    Returns:
        Rows of `COUNTED_PLACES`.
    """
    return _located(encoder, parcel, COUNTED_PLACES, lambda drafts: _num_tokens(encoder, drafts))


def _located(
    encoder: Encoder,
    parcel: Parcel,
    schema: pa.Schema,
    measure: Callable[[Sequence[Draft]], Sequence[tuple[int, ...]]],
) -> Packed:
    packed = Packed(len(parcel.spans))
    rows: list[tuple[int, ...]] = []
    num_encoded = encoder.texts.num_encoded
    for (start, end), number, drafts in zip(
        parcel.spans.tolist(), parcel.numbers, _drafts(encoder, parcel, packed), strict=True
    ):
        rows += [(start, end, number, nth, *measured) for nth, measured in enumerate(measure(drafts))]
        packed.counters["measured_records"] += encoder.texts.num_encoded > num_encoded
        num_encoded = encoder.texts.num_encoded
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = {field.name: pa.array(column, field.type) for field, column in zip(schema, columns, strict=True)}
    packed.batch = pack(schema, arrays)
    return packed


def run_lengths(labels: Sequence[int]) -> list[int]:
    """Give the lengths of the stretches that are not supervised and that are, in turns.

    Args:
        labels: Of one sample, at least one.

    Returns:
        The lengths; the first one is 0 when the sample begins with a supervised token.
    """
    is_supervised = np.asarray(labels) != IGNORE_INDEX
    edges = [0, *(np.flatnonzero(np.diff(is_supervised)) + 1).tolist(), len(labels)]
    lengths = [end - start for start, end in pairwise(edges)]
    return [0, *lengths] if is_supervised[0] else lengths


def labels_of(target: Integers, runs: Integers) -> Integers:
    """Undo `run_lengths`.

    Args:
        target: Ids of one sample.
        runs: As `run_lengths` gives them.

    Returns:
        The labels.
    """
    is_supervised = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    labels: Integers = np.where(is_supervised, target, np.int32(IGNORE_INDEX))
    return labels


def num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Give the number of tokens with which two samples begin alike.

    Args:
        first: Ids of the one.
        second: Ids of the other.

    Returns:
        At most so many that each has a token of its own behind them.
    """
    most = max(0, min(len(first), len(second)) - 1)
    differing = np.flatnonzero(np.asarray(first[:most]) != np.asarray(second[:most]))
    return int(differing[0]) if len(differing) else most


def _drafts(encoder: Encoder, parcel: Parcel, packed: Packed) -> Iterator[list[Draft]]:
    """Give the samples of each record, and put into `packed` what became of it."""
    for conversation in parcel.conversations():
        outcome, counters = draft_conversation(conversation, encoder)
        packed.counters += counters
        if isinstance(outcome, Rejection):
            packed.rejected.append(f"{conversation.place}: {told_rejection(outcome)}")
            yield []
            continue
        packed.counters["samples"] += len(outcome.drafts)
        yield outcome.drafts


def _num_cut(encoder: Encoder, draft: Draft, num_kept: int) -> int:
    """Count the tokens of a target that were cut off, which only happens where as many as possible are left."""
    return encoder.count_tokens(draft.target) - num_kept if num_kept == encoder.options.max_tokens else 0


def _num_characters(draft: Draft) -> int:
    return sum(len(segment.text) for segment in (*draft.source, *draft.target))


def _num_tokens(encoder: Encoder, drafts: Sequence[Draft]) -> list[tuple[int, ...]]:
    return [
        (len(example.input_ids) if draft.source else 0, len(example.labels), common)
        for draft, example, common in _samples(encoder, drafts)
    ]


def _samples(encoder: Encoder, drafts: Sequence[Draft]) -> Iterator[tuple[Draft, Example, int]]:
    """Encode the samples of a conversation, and tell how many tokens each begins with as the one before it does."""
    before: Sequence[int] = ()
    for draft in drafts:
        example = encoder.example(draft)
        yield draft, example, 0 if draft.source else num_shared(before, example.input_ids)
        before = example.input_ids


class _Rows:
    """A ragged column that grows; plain lists would hold an object for each number."""

    def __init__(self) -> None:
        self._values = array("i")
        self._offsets = array("i", [0])

    def add(self, row: Sequence[int]) -> None:
        self._values.extend(row)
        self._offsets.append(len(self._values))

    def column(self) -> pa.Array:
        return ragged(np.asarray(self._offsets), np.asarray(self._values))
