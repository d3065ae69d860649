"""Files that are on the disk when we say so: new, fsynced, of the mode that the umask asks for, their hash known."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec

_READ = 1 << 22
_BUFFER = 1 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class FileFact(msgspec.Struct, frozen=True):
    """What a file must be.

    Args:
        size: In bytes.
        sha256: In hexadecimal digits.
    """

    size: int
    sha256: str


class NewFile:
    """A file that did not exist before, written from front to back.

    Args:
        path: Must not exist; no link is followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found = hashlib.sha256()
        self._size = 0
        # Not safetensors' own writer: it gives every file mode 0600 (safetensors issue 782).
        self._stream = os.fdopen(os.open(path, _NEW, 0o666), "wb", buffering=_BUFFER)

    def write(self, data: Any) -> None:
        """Append.

        Args:
            data: Bytes, or anything that lies in memory like them.
        """
        self._stream.write(data)
        self._found.update(data)
        self._size += len(data)

    def finish(self) -> FileFact:
        """Bring the file to the disk and close it.

        Returns:
            Its size and hash.

        Raises:
            AssertionError: When the file system has another size than was written.
        """
        self._stream.flush()
        os.fsync(self._stream.fileno())
        size = os.fstat(self._stream.fileno()).st_size
        self._stream.close()
        if size != self._size:
            raise AssertionError(f"{self.path} must have {self._size} bytes, but has {size}")
        return FileFact(size, self._found.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Close the file as it is, after a fault; nothing happens to one that is finished."""
        # What is still in the buffer cannot be written either; the folder is thrown away.
        with suppress(OSError):
            self._stream.close()


def settled(path: Path) -> FileFact:
    """Bring a file that another library wrote to the disk, and tell what it is.

    Args:
        path: A plain file; no link is followed.

    Returns:
        Its size and hash.
    """
    _sync(path, os.O_NOFOLLOW)
    return fact_of(path)


def fact_of(path: Path) -> FileFact:
    """Read a file that exists and tell what it is.

    Args:
        path: A plain file; no link is followed.

    Returns:
        Its size and hash.
    """
    found, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
        while data := stream.read(_READ):
            found.update(data)
            size += len(data)
    return FileFact(size, found.hexdigest())


def write_new_json(path: Path, content: Any) -> FileFact:
    """Write a JSON file that did not exist before.

    Args:
        path: Must not exist.
        content: Anything JSON can hold.

    Returns:
        Its size and hash.

    Raises:
        ValueError: For NaN and infinity, which JSON has no word for.
        OSError: When the disk is full or fails.
    """
    data = (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    with NewFile(path) as file:
        file.write(data)
        return file.finish()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it, so that readers see the old one or the new one.

    Args:
        path: Replaced when it exists.
        content: All of it.

    Raises:
        OSError: When the disk is full or fails.
    """
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    # Only what did not exist is opened: a link that somebody put there leads out of the folder.
    with os.fdopen(os.open(part, _NEW, 0o666), "wb") as stream:
        stream.write(content)
    part.replace(path)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk.

    Args:
        folder: An existing folder.
    """
    _sync(folder, os.O_DIRECTORY)


def _sync(path: Path, flag: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | flag)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
