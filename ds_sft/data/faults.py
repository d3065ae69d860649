"""Puts a fault of a data file into one line: file, record, line, byte, field, rule, value, and what to do."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ds_sft.data.content import Content
from ds_sft.errors import DataError

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that decoding a record may raise."""

_MEND = "mend or drop that record"
_WINDOW = 1 << 20
_TRAILING = "trailing characters"
_BYTE = re.compile(r" \(byte (\d+)\)")
_FIELD = re.compile(r" - at `\$\.?(.*)`")
_KIND = re.compile(r"Expected `(.*)`, got `(.*)`")
_HALF_PAIR = re.compile(rb"\\ud[89ab]", re.IGNORECASE)
_TEXT_ELSEWHERE = {
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"\xfd7zXZ": "an xz file",
    b"BZh": "a bzip2 file",
}


def foreign_fault(path: Path, head: bytes) -> DataError | None:
    """Tell a file that is no UTF-8 text from its first bytes.

    Args:
        path: The data file.
        head: Its first eight bytes.

    Returns:
        The error to raise, or None.
    """
    looks = next((name for magic, name in _TEXT_ELSEWHERE.items() if head.startswith(magic)), None)
    if looks is None and any(head[0::2]) != any(head[1::2]) and head[2:]:
        looks = "UTF-16"
    if looks is None:
        return None
    remedy = "convert it, as in: iconv -f UTF-16 -t UTF-8" if looks == "UTF-16" else "convert it to JSON"
    return DataError(f"{path}: data file must be JSON in UTF-8, but looks like {looks}; {remedy}")


def record_fault(content: Content, error: Exception, *, record: int, start: int, end: int) -> DataError:
    """Name the place of a broken record and the rule that it breaks.

    Args:
        content: The data file.
        error: One of `UNREADABLE`.
        record: The record's number from 1, blank lines not counted.
        start: Offset of its first byte.
        end: Offset behind its last byte, or the end of the file when that is unknown.

    Returns:
        The error to raise.
    """
    byte, told = _told(content, error, start, end)
    line = 1 + count_newlines(content, 0, byte)
    return DataError(f"{content.path}:record {record}, line {line}, byte {byte}: {told}")


def count_newlines(content: Content, start: int, end: int) -> int:
    """Count line ends without copying the file.

    Args:
        content: The data file.
        start: Offset of the first byte to look at.
        end: Offset behind the last one.

    Returns:
        Their number.
    """
    return sum(bytes(window).count(b"\n") for _, window in _windows(content, start, end))


def offset_of(error: Exception, *, default: int) -> int:
    """Give the offset at which decoding stopped.

    Args:
        error: As raised by msgspec.
        default: The offset when the error tells none.

    Returns:
        The offset in the decoded text.
    """
    found = _BYTE.search(str(error))
    if found is None:
        return default
    # msgspec counts from 0, but what follows a value from 1.
    return int(found[1]) - is_about_the_rest(error)


def is_about_the_rest(error: Exception) -> bool:
    """Tell whether a value was whole, and only what follows it is at fault.

    Args:
        error: As raised by msgspec.

    Returns:
        Whether `offset_of` gives where the value is over.
    """
    return _TRAILING in str(error)


def _windows(content: Content, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
    for begin in range(start, end, _WINDOW):
        yield begin, content.part(begin, min(begin + _WINDOW, end))


def _told(content: Content, error: Exception, start: int, end: int) -> tuple[int, str]:
    """Give the byte at fault, and rule, value and remedy."""
    if isinstance(error, RecursionError):
        return start, f"must be less deeply nested, but is nested too deeply; {_MEND}"
    if isinstance(error, msgspec.ValidationError):
        return start, _told_shape(str(error))
    byte = start + offset_of(error, default=end - start)
    bad = _first_bad_byte(content, start, byte)
    if bad is not None:
        value = content.part(bad, bad + 1)[0]
        return bad, f"must be UTF-8, but holds byte {value:#04x}; convert the file, as in: iconv -f GB18030 -t UTF-8"
    return byte, _told_syntax(_BYTE.sub("", str(error)), bytes(content.part(max(start, byte - 12), byte)))


def _told_syntax(message: str, before: bytes) -> str:
    """Say what is wrong with JSON; the last bytes before the fault may tell more than the decoder does."""
    if _TRAILING in message and before.endswith(b"\r"):
        return "must end its lines with LF, but has CR alone; convert the file, as in: tr '\\r' '\\n'"
    if not message.startswith("Input data was truncated"):
        reason = f", but: {message.removeprefix('JSON is malformed: ')}"
    elif _HALF_PAIR.search(before):
        reason = ", but has half of a surrogate pair"
    else:
        reason = " (on one line, outside of an array), but ends too early"
    return f"must be one JSON object{reason}; {_MEND}"


def _told_shape(message: str) -> str:
    """Say which field has a value of the wrong kind."""
    found = _FIELD.search(message)
    field = f"`{found[1]}` " if found and found[1] else ""
    rule = _FIELD.sub("", message)
    kind = _KIND.fullmatch(rule)
    if kind:
        rule = f"must be {kind[1].replace(' | ', ' or ')}, but is {kind[2]}"
    if "must" not in rule:
        rule = f"must be a usual value, but: {rule}"
    return f"{field}{rule}; {_MEND}"


def _first_bad_byte(content: Content, start: int, end: int) -> int | None:
    """Give the offset of the first byte that is not UTF-8; a character that is cut off by the end is no fault."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin, window in _windows(content, start, end):
        num_pending = len(decoder.getstate()[0])
        try:
            decoder.decode(window)
        except UnicodeDecodeError as error:
            return begin - num_pending + error.start
    return None
