"""The file of a table: whole or not there, with a checksum over all of it.

It is an Arrow stream, which other programs can read. Behind the end of the stream stand a note, which is a JSON object,
and a tail of fixed length. It is written under another name and then renamed.
"""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ds_sft.errors import DataError, SaveError

_TAIL = struct.Struct("<QQI4s")
"""Number of bytes of the stream and of the note, checksum of both, mark."""
_MARK = b"dsA1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_OWNER = b"ds_sft"
_HEAD = 4096
_CHUNK = 1 << 20

Note = Mapping[str, Any]


class BrokenTableError(DataError):
    """A file that is no whole table.

    Args:
        file: The file.
        reason: What is wrong with it.
    """

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: must be as it was written, but {reason}; delete it")
        self.reason = reason


def write_table(file: Path, *, schema: pa.Schema, batches: Iterable[bytes], note: Callable[[], Note]) -> None:
    """Write a table so that nobody ever sees a part of it.

    Args:
        file: Replaced when there is one; its folder must be there.
        schema: Of all batches.
        batches: From `pack`, taken one by one.
        note: Asked for behind the last batch.

    Raises:
        SaveError: When it cannot be written.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with told_write_faults(file):
        try:
            with part.open("wb") as out:
                _write(out, schema, batches, note)
                out.flush()
                os.fsync(out.fileno())
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(file.parent)


def remove_leftovers(file: Path) -> None:
    """Remove what writers of a table left behind when they were killed; nobody may be writing it now.

    Args:
        file: Of the table.
    """
    for part in file.parent.glob(f".{escape(file.name)}.*.part"):
        part.unlink(missing_ok=True)


def may_replace(file: Path) -> bool:
    """Tell whether nothing but a table of ours would be lost, be it a damaged one.

    Args:
        file: What is to be replaced.

    Returns:
        False for a file of another kind.
    """
    if not file.exists():
        return True
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    return not head or (head.startswith(_END_OF_STREAM[:4]) and _OWNER in head)


def read_note(opened: IO[bytes], file: Path, *, is_checked: bool) -> Note:
    """Make sure that a file is whole, and give its note.

    Args:
        opened: The file.
        file: Its name.
        is_checked: Whether the checksum was compared before.

    Returns:
        The note.

    Raises:
        BrokenTableError: When it is not whole.
    """
    num_bytes = os.fstat(opened.fileno()).st_size
    if num_bytes < _TAIL.size:
        raise BrokenTableError(file, f"it has {num_bytes} bytes only")
    opened.seek(-_TAIL.size, os.SEEK_END)
    stream, note, checksum, mark = _TAIL.unpack(opened.read())
    if mark != _MARK or stream + note + _TAIL.size != num_bytes:
        raise BrokenTableError(file, "its end is not that of a whole file")
    found = checksum if is_checked else _checksum(opened, stream + note)
    if found != checksum:
        raise BrokenTableError(file, f"its checksum is {found:08x}, but was {checksum:08x} when it was written")
    opened.seek(stream)
    read: Note = json.loads(opened.read(note))
    return read


@contextmanager
def told_write_faults(file: Path) -> Iterator[None]:
    """Tell why a table could not be written.

    Args:
        file: Of the table.

    Yields:
        Nothing.

    Raises:
        SaveError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{file}: tokenised samples must be writable there, but: {error.strerror or error}; name another place "
            "with --preprocessed_path, or another folder in DS_SFT_CACHE"
        ) from error


def _write(out: IO[bytes], schema: pa.Schema, batches: Iterable[bytes], note: Callable[[], Note]) -> None:
    stream = checksum = 0
    for part in _stream(schema, batches):
        out.write(part)
        stream += len(part)
        checksum = zlib.crc32(part, checksum)
    told = json.dumps(note(), ensure_ascii=True).encode()
    out.write(told + _TAIL.pack(stream, len(told), zlib.crc32(told, checksum), _MARK))


def _stream(schema: pa.Schema, batches: Iterable[bytes]) -> Iterator[bytes]:
    yield schema.with_metadata({_OWNER: b"1"}).serialize().to_pybytes()
    yield from batches
    yield _END_OF_STREAM


def _checksum(opened: IO[bytes], num_bytes: int) -> int:
    """Read rather than map: pages that were looked at once must not count as memory of this process."""
    opened.seek(0)
    checksum = 0
    for start in range(0, num_bytes, _CHUNK):
        checksum = zlib.crc32(opened.read(min(_CHUNK, num_bytes - start)), checksum)
    return checksum


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
