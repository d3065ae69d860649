"""Makes the table of a data file, or finds the one that was made before: of samples, or of their places."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pyarrow as pa

from ds_sft.config.sources import DataArguments
from ds_sft.data.account import PLACES_SHOWN, refuse_rejected
from ds_sft.data.cache import Parts, cache_file, key_of, map_or_build
from ds_sft.data.content import digest
from ds_sft.data.draft import Encoder
from ds_sft.data.fingerprint import parts_of
from ds_sft.data.read import RecordFile, open_records
from ds_sft.data.samples import (
    COUNTED_PLACES,
    PLACES,
    SAMPLES,
    Packed,
    Parcel,
    locate,
    locate_and_count,
    parcels_of,
    tokenise,
)
from ds_sft.data.table import Table
from ds_sft.data.table_file import Note, write_table
from ds_sft.data.workers import num_cores, spread
from ds_sft.errors import DataError

log = logging.getLogger(__name__)

_BYTES_OF_ONE_PROCESS = 8 << 20
"""Below this, starting other processes takes longer than doing their work."""
_SECONDS_BETWEEN_LINES = 5.0
_MEBIBYTE = 1 << 20

Work = Callable[[Encoder, Parcel], Packed]
Kind = Literal["samples", "places", "counted places"]
_KINDS: dict[Kind, tuple[Work, pa.Schema]] = {
    "samples": (tokenise, SAMPLES),
    "places": (locate, PLACES),
    "counted places": (locate_and_count, COUNTED_PLACES),
}
"""What a table holds -> how it is made."""


def prepare(path: Path, *, role: str, data: DataArguments, encoder: Encoder, counts_tokens: bool = False) -> Table:
    """Give the table of a data file.

    Args:
        path: The data file.
        role: `train` or `eval`.
        data: How many records, eager or lazy, strict or not, where to keep the table.
        encoder: Family, tokenizer and layout.
        counts_tokens: Whether the tokens of each sample must be known.

    Returns:
        A table of `SAMPLES`; for samples that are made on access, of `PLACES` or `COUNTED_PLACES`.

    Raises:
        DataError: When the data file cannot be used.
    """
    lazy: Kind = "counted places" if counts_tokens else "places"
    kind: Kind = lazy if data.lazy_preprocess else "samples"
    parts = {**parts_of(path, encoder=encoder, num_data=data.num_data), "kind": kind}
    file = cache_file(data.preprocessed_path, key=key_of(parts), role=role)
    table = map_or_build(file, parts=parts, build=lambda: _build(file, path, parts, data, encoder, kind))
    log.info("%d %s in %s (%.1f MiB)", len(table), kind, file, table.num_bytes / _MEBIBYTE)
    if data.strict_data:
        refuse_rejected(path, table.note["rejected"])
    return table


def _build(file: Path, path: Path, parts: Parts, data: DataArguments, encoder: Encoder, kind: Kind) -> None:
    records = open_records(path)
    if data.num_data >= 0:
        records = records[: data.num_data]
    if not records:
        raise DataError(f"{path}: must hold at least one conversation, but has {len(records)}; add some")
    work, schema = _KINDS[kind]
    totals = Packed(0)
    with closing(spread(work, encoder, parcels_of(records), num_workers=_num_workers(records))) as results:
        batches = _told_progress(_summed(results, totals, path, is_strict=data.strict_data), totals, len(records), path)
        write_table(file, schema=schema, batches=batches, note=lambda: _note(totals, parts, path, records))


def _num_workers(records: RecordFile) -> int:
    spans = records.boundaries.spans
    return num_cores() if int(spans[-1, 1] - spans[0, 0]) > _BYTES_OF_ONE_PROCESS else 1


def _summed(results: Iterable[Packed], totals: Packed, path: Path, *, is_strict: bool) -> Iterator[bytes]:
    """Give the batches, and add up what belongs to them."""
    for packed in results:
        if is_strict:
            refuse_rejected(path, packed.rejected)
        totals.num_records += packed.num_records
        totals.counters += packed.counters
        totals.rejected = [*totals.rejected, *packed.rejected][:PLACES_SHOWN]
        yield packed.batch


def _told_progress(batches: Iterable[bytes], totals: Packed, num_records: int, path: Path) -> Iterator[bytes]:
    """Say now and then how far it is."""
    started = told = time.monotonic()
    for batch in batches:
        now = time.monotonic()
        if now - told >= _SECONDS_BETWEEN_LINES:
            told, left = now, (now - started) * (num_records / totals.num_records - 1)
            log.info("%s: %d of %d records done, %.0f s left", path, totals.num_records, num_records, left)
        yield batch
    log.info("%s: %d records prepared in %.1f s", path, num_records, time.monotonic() - started)


def _note(totals: Packed, parts: Parts, path: Path, records: RecordFile) -> Note:
    if digest(path) != parts["data"]:
        raise DataError(f"{path}: must stay as it is while it is read, but has changed; start the run again")
    return {
        "parts": parts,
        "unit": records.boundaries.unit,
        "counters": {"records": totals.num_records, **totals.counters},
        "rejected": totals.rejected,
    }
