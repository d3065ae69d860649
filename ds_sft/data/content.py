"""The bytes of a data file: mapped rather than read, unpacked first when compressed, mapped anew after pickling."""

import gzip
import hashlib
import mmap
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO

from ds_sft.errors import DataError, MissingInputError, PermissionRefusedError, SaveError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Content:
    """The bytes of one data file, shared by all processes of a machine and reclaimable by it.

    Args:
        path: JSON text, or a .gz or .zst file of it. A compressed file is unpacked into a temporary file without a
            name, which the system removes with the last process that has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = _stamp(path)
        self._mapped: mmap.mmap | bytes | None = _map(path)

    @property
    def mapped(self) -> mmap.mmap | bytes:
        """The bytes; a process that got them by pickling maps them when it asks for them first.

        Raises:
            DataError: When the file is no longer the one that was opened.
        """
        if self._mapped is None:
            if _stamp(self.path) != self._stamp:
                raise _changed(self.path)
            self._mapped = _map(self.path)
        return self._mapped

    def part(self, start: int, end: int) -> memoryview:
        """Give some bytes without copying them.

        Args:
            start: Offset of the first one.
            end: Offset behind the last one.

        Returns:
            A view, valid as long as it is held.

        Raises:
            DataError: When the file has become shorter.
        """
        mapped = self.mapped
        # Reading a map behind the end of its file would end the process.
        if isinstance(mapped, mmap.mmap) and mapped.size() < end:
            raise _changed(self.path)
        return memoryview(mapped)[start:end]

    def release(self) -> None:
        """Let go of the memory that holds bytes read so far; they are read again when needed."""
        if isinstance(self._mapped, mmap.mmap):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def __getstate__(self) -> tuple[Path, tuple[int, int]]:
        return self.path, self._stamp

    def __setstate__(self, state: tuple[Path, tuple[int, int]]) -> None:
        self.path, self._stamp = state
        self._mapped = None


def digest(path: Path) -> str:
    """Give the digest of a data file as it lies there: a compressed one is not unpacked.

    Args:
        path: The data file.

    Returns:
        64 hexadecimal digits.

    Raises:
        DataError: When it is no file, or is being written.
    """
    before = _stamp(path)
    with _told_faults(path), path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if _stamp(path) != before:
        raise _changed(path)
    return found


def _changed(path: Path) -> DataError:
    return DataError(f"{path}: must stay as it is during a run, but has changed; start the run again")


def _stamp(path: Path) -> tuple[int, int]:
    """Give what tells one state of a file from another: its size and when it was written."""
    with _told_faults(path):
        told = path.stat()
    if stat.S_ISDIR(told.st_mode):
        raise DataError(f"data_path: must be a file, but {path} is a folder; name the JSON file in it")
    if not stat.S_ISREG(told.st_mode):
        raise DataError(f"data_path: must be a file, but {path} is a pipe or device; write its content to a file")
    return told.st_size, told.st_mtime_ns


def _map(path: Path) -> mmap.mmap | bytes:
    with _told_faults(path), path.open("rb") as file:
        head = file.read(len(_ZSTD))
        # The name of the file decides nothing, because no JSON begins like a compressed file.
        if not head.startswith((_GZIP, _ZSTD)):
            return _map_open(file)
    with _open_packed(path, head) as packed, _temporary_file() as unpacked:
        _copy(packed, unpacked, path)
        return _map_open(unpacked)


def _open_packed(path: Path, head: bytes) -> BufferedIOBase:
    with _told_faults(path):
        return gzip.GzipFile(path) if head.startswith(_GZIP) else zstd.ZstdFile(path)


def _map_open(file: IO[bytes]) -> mmap.mmap | bytes:
    """Map an open file; an empty one cannot be mapped."""
    size = os.fstat(file.fileno()).st_size
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def _copy(packed: BufferedIOBase, unpacked: IO[bytes], path: Path) -> None:
    """Unpack a file, as long as it leaves half of the free disk space alone."""
    limit = shutil.disk_usage(tempfile.gettempdir()).free // 2
    size = 0
    for chunk in _chunks(packed, path):
        size += len(chunk)
        if size > limit:
            raise DataError(
                f"{path}: must unpack to at most {limit} bytes, half of the free space in {tempfile.gettempdir()}, but "
                "goes on; free some space or set TMPDIR to a larger disk"
            )
        with _told_write_faults():
            unpacked.write(chunk)
    with _told_write_faults():
        unpacked.flush()


def _chunks(packed: BufferedIOBase, path: Path) -> Iterator[bytes]:
    while True:
        try:
            chunk = packed.read(_CHUNK)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise DataError(f"{path}: must be a whole compressed file, but: {error}; copy it again") from error
        if not chunk:
            return
        yield chunk


def _temporary_file() -> IO[bytes]:
    with _told_write_faults():
        return tempfile.TemporaryFile(prefix="ds_sft-")


@contextmanager
def _told_write_faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"TMPDIR: must have room for the unpacked data file, but: {error.strerror}; set it to a larger disk"
        ) from error


@contextmanager
def _told_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(f"data_path: file must exist, but {path} does not; check the path") from error
    except PermissionError as error:
        raise PermissionRefusedError(f"data_path: must be readable, but {path} is not; check its mode") from error
    except OSError as error:
        raise DataError(f"data_path: must be readable, but {path} is not: {error.strerror}; check the path") from error
