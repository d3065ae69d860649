"""Finds where the records of a data file begin and end, and checks each of them on the way."""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from mmap import mmap

import msgspec
import numpy as np
import numpy.typing as npt

from ds_sft.data.content import Content
from ds_sft.data.faults import UNREADABLE, count_newlines, foreign_fault, is_about_the_rest, offset_of, record_fault
from ds_sft.data.forms import check
from ds_sft.errors import DataError

_BOM = b"\xef\xbb\xbf"
_TEXT = re.compile(rb"[^ \t\r\n]")
_VALUE = msgspec.json.Decoder(msgspec.Raw)

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Boundaries:
    """Where the records are.

    Args:
        spans: Offset of the first byte and offset behind the last one, shape [records, 2].
        numbers: What each record is numbered in messages to the user, from 1.
        unit: What is numbered: `record` or `line`.
    """

    spans: Integers
    numbers: Sequence[int] | Integers
    unit: str


def find_boundaries(content: Content) -> Boundaries:
    """Find and check every record of a data file.

    Args:
        content: A JSON array, or one JSON object a line.

    Returns:
        The boundaries in file order.

    Raises:
        DataError: At the first broken record; names file, record, line, byte, field and rule.
    """
    mapped = content.mapped
    fault = foreign_fault(content.path, mapped[:8])
    if fault is not None:
        raise fault
    first = _next_text(mapped, len(_BOM) if mapped[: len(_BOM)] == _BOM else 0)
    if first == len(mapped):
        raise DataError(
            f"{content.path}: data file must hold at least one conversation, but is empty; write a JSON array"
        )
    if mapped[first : first + 1] == b"[":
        spans = _table(_elements(content, first + 1), width=2)
        return Boundaries(spans, range(1, len(spans) + 1), "record")
    rows = _table(_lines(content, first), width=3)
    spans, numbers = rows[:, :2], rows[:, 2]
    has_gaps = len(numbers) > 0 and int(numbers[-1]) != len(numbers)
    # Without blank lines the numbers follow from the order: a third of the memory.
    return Boundaries(np.ascontiguousarray(spans), numbers.copy() if has_gaps else range(1, len(rows) + 1), "line")


def _table(rows: Iterator[tuple[int, ...]], *, width: int) -> Integers:
    """Collect rows of numbers at eight bytes a number."""
    numbers = array("q")
    for row in rows:
        numbers.extend(row)
    return np.asarray(numbers, dtype=np.int64).reshape(-1, width)


def _lines(content: Content, position: int) -> Iterator[tuple[int, int, int]]:
    """Give start, end and line number of every line that is not blank."""
    mapped, view = content.mapped, content.part(0, len(content.mapped))
    record, line = 0, 1 + count_newlines(content, 0, position)
    while position < len(mapped):
        end = mapped.find(b"\n", position)
        end = len(mapped) if end < 0 else end
        record += 1
        _check(content, view, record, position, end)
        yield position, end, line
        position = _next_text(mapped, end)
        line += 1 if position == end + 1 else count_newlines(content, end, position)


def _elements(content: Content, position: int) -> Iterator[tuple[int, int]]:
    """Give start and end of every element of an array, from behind its bracket."""
    mapped, view = content.mapped, content.part(0, len(content.mapped))
    start, record, mark = _next_text(mapped, position), 0, b","
    if mapped[start : start + 1] == b"]":
        start, mark = _next_text(mapped, start + 1), b"]"
    while mark == b",":
        record += 1
        end = _element_end(content, view, record, start)
        _check(content, view, record, start, end)
        yield start, end
        mark = mapped[end : end + 1]
        if mark not in {b",", b"]"}:
            raise _syntax_fault(content, record, start, end, "expected ',' or ']'")
        start = _next_text(mapped, end + 1)
    if start < len(mapped):
        raise _syntax_fault(content, record + 1, start, start, "text after the array")


def _check(content: Content, view: memoryview, record: int, start: int, end: int) -> None:
    try:
        check(view[start:end])
    except UNREADABLE as error:
        raise record_fault(content, error, record=record, start=start, end=end) from error


def _element_end(content: Content, view: memoryview, record: int, start: int) -> int:
    """Give the offset of what follows a JSON value: decoding it alone complains about what comes next."""
    try:
        _VALUE.decode(view[start:])
    except UNREADABLE as error:
        if not is_about_the_rest(error):
            raise record_fault(content, error, record=record, start=start, end=len(view)) from error
        return start + offset_of(error, default=0)
    return len(view)


def _syntax_fault(content: Content, record: int, start: int, byte: int, reason: str) -> DataError:
    is_cut = byte == len(content.mapped)
    told = "Input data was truncated" if is_cut else f"JSON is malformed: {reason} (byte {byte - start})"
    return record_fault(content, msgspec.DecodeError(told), record=record, start=start, end=byte)


def _next_text(mapped: mmap | bytes, position: int) -> int:
    """Give the offset of the next byte that is no whitespace, or the length where there is none."""
    found = _TEXT.search(mapped, position)
    return found.start() if found else len(mapped)
