"""Reads ShareGPT conversations from a JSON array or JSONL file; a bad record is named with its place."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ds_sft.contracts import Conversation, Turn
from ds_sft.errors import DataError, MissingInputError, PermissionRefusedError

_BYTE = re.compile(r"\(byte (\d+)\)")
_RECORD = re.compile(r"\$\[(\d+)\]")
_WHITESPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


class _Message(msgspec.Struct):
    """One message; the values stay unchecked, because a bad one costs its conversation and not the file."""

    role: Any = msgspec.field(name="from", default=None)
    text: Any = msgspec.field(name="value", default=None)


class _Record(msgspec.Struct):
    """One conversation of a ShareGPT file; keys we do not know are skipped."""

    conversations: list[_Message]
    id: Any = ""


_ARRAY = msgspec.json.Decoder(list[_Record])
_LINE = msgspec.json.Decoder(_Record)


def read_conversations(path: Path) -> list[Conversation]:
    """Read every conversation of a ShareGPT file.

    Args:
        path: A JSON array, or one JSON object a line.

    Returns:
        The conversations in file order.

    Raises:
        DataError: When the file is not such JSON; names file, record, byte and rule.
    """
    content = _read_bytes(path)
    stripped = content.lstrip(_WHITESPACE)
    if not stripped:
        raise DataError(f"{path}: data file must hold at least one conversation, but is empty; write a JSON array")
    return list(_from_array(path, content) if stripped.startswith(b"[") else _from_lines(path, content))


def texts_of(conversations: Iterable[Conversation]) -> list[str]:
    """Give every message of some conversations, for training a tokenizer.

    Args:
        conversations: As read.

    Returns:
        The texts in order.
    """
    return [turn.text for conversation in conversations for turn in conversation.turns if isinstance(turn.text, str)]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(_BOM)
    except FileNotFoundError as error:
        raise MissingInputError(f"data_path: file must exist, but {path} does not; check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"data_path: must be a file, but {path} is a folder; name the JSON file in it") from error
    except PermissionError as error:
        raise PermissionRefusedError(f"data_path: must be readable, but {path} is not; check its mode") from error


def _from_array(path: Path, content: bytes) -> Iterator[Conversation]:
    try:
        records = _ARRAY.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _array_fault(path, content, error) from error
    for number, record in enumerate(records, start=1):
        yield _conversation(record, f"{path}:record {number}")


def _from_lines(path: Path, content: bytes) -> Iterator[Conversation]:
    start = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if line.strip(_WHITESPACE):
            try:
                record = _LINE.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                byte = start + _byte_of(error, line)
                raise DataError(
                    f"{path}:line {number}: every line must be one conversation object, but at byte {byte}: "
                    f"{_reason(error)}; mend or drop that line"
                ) from error
            yield _conversation(record, f"{path}:line {number}")
        start += len(line)


def _conversation(record: _Record, place: str) -> Conversation:
    turns = tuple(Turn(message.role, message.text) for message in record.conversations)
    return Conversation(turns=turns, place=place, identity=str(record.id))


def _array_fault(path: Path, content: bytes, error: Exception) -> DataError:
    """Name the record and the byte of a fault in a JSON array."""
    in_record = _RECORD.search(str(error))
    if in_record:
        place = f"record {int(in_record[1]) + 1}"
    else:
        byte = _byte_of(error, content)
        place = f"record {_record_at(content, byte)}, byte {byte}"
    return DataError(
        f"{path}:{place}: the file must be a JSON array of conversations, but: {_reason(error)}; mend that record"
    )


def _byte_of(error: Exception, content: bytes) -> int:
    """Give the offset of a fault; text that ends too early is at fault where it ends."""
    if isinstance(error, UnicodeDecodeError):
        return _first_bad_byte(content)
    found = _BYTE.search(str(error))
    return int(found[1]) if found else len(content)


def _first_bad_byte(content: bytes) -> int:
    """Give the offset in the whole content; msgspec counts from the start of the string."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(content)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 ({error.reason})"
    return _BYTE.sub("", str(error)).strip()


def _record_at(content: bytes, byte: int) -> int:
    """Give the 1-based number of the array element that holds a byte, reading brackets outside of strings."""
    depth, record, in_string, escaped = 0, 1, False, False
    for character in content[:byte].decode("latin-1"):
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 1:
            record += 1
    return record
