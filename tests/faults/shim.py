"""Control of crashfs, which counts what a process changes below one folder and makes the n-th change fail."""

import ctypes
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_SOURCE = Path(__file__).parent / "crashfs.c"


class Mode(IntEnum):
    """What operation n meets."""

    KILL = 0
    """SIGKILL, before the operation."""
    ENOSPC = 1
    """This error, and so every later operation that needs space; syncing, closing and deleting succeed."""
    EDQUOT = 2
    """As ENOSPC."""
    EROFS = 3
    """As ENOSPC, and so every later opening for writing."""
    EIO = 4
    """This error, once."""
    SHORT = 5
    """Nothing, but the first write from there on writes only half, once."""


class NotPreloadedError(RuntimeError):
    """This process was started without crashfs."""


@dataclass(frozen=True)
class Operation:
    """One counted operation.

    Args:
        time: When it had ended, in nanoseconds of a clock that all processes share.
        process: Which process did it.
        name: create, open, empty (an existing file opened and emptied), mkdir, rename, link, symlink, unlink, rmdir,
            write, truncate, fallocate, fsync or close.
        result: What it gave back: of a write the bytes written; of a failure the error's negative number.
        offset: Of a write: where in the file.
        size: Of a write: the bytes asked for; of a truncation: the new size.
        path: On what, every link resolved.
        other: The new name of a rename or link; what a symlink points to.
    """

    time: int
    process: int
    name: str
    result: int
    offset: int
    size: int
    path: str
    other: str


def build(into: Path) -> Path | str:
    """Compile the library.

    Args:
        into: An existing folder.

    Returns:
        The library for LD_PRELOAD, or the reason why there is none.
    """
    if platform.libc_ver()[0] != "glibc":
        return f"crashfs needs Linux with glibc, but this is {platform.platform()}"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return "no C compiler: none of cc, gcc and clang is on the PATH"
    library = into / "crashfs.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "No such file" in done.stderr:
        return f"no C compiler: {compiler} has no headers: {done.stderr}"
    assert done.returncode == 0, done.stderr
    return library


def arm(folder: Path, n: int, mode: Mode, *, log: Path | None = None) -> None:
    """Count this process's operations from now on, and let one of them meet a fault.

    Args:
        folder: Operations on it and below it count; it need not exist yet.
        n: The operation that meets the fault, from 1; with 0 nothing fails.
        mode: The fault.
        log: The file to which every operation is appended; tabs and line breaks must not be in any name.

    Raises:
        NotPreloadedError: When this process was started without the library.
    """
    library = _library()
    library.crashfs_log(b"" if log is None else os.fsencode(log.absolute()))
    if library.crashfs_arm(os.fsencode(os.path.realpath(folder)), ctypes.c_long(n), int(mode)) != 0:
        raise AssertionError(f"crashfs does not know the fault {mode!r} below {folder}")


def count() -> int:
    """Give the number of operations since this process was armed."""
    counted = _library().crashfs_count
    counted.restype = ctypes.c_long
    return int(counted())


def disarm() -> None:
    """Count no more and let nothing fail."""
    _library().crashfs_disarm()


def read_log(*files: Path) -> list[Operation]:
    """Read what was logged.

    Args:
        *files: The logs of all processes that worked together.

    Returns:
        Their operations in the order of time.
    """
    lines = [line.split("\t") for file in files for line in os.fsdecode(file.read_bytes()).splitlines()]
    found = [
        Operation(int(time), int(process), name, int(result), int(offset), int(size), path, other)
        for time, process, name, result, offset, size, path, other in lines
    ]
    return sorted(found, key=lambda operation: operation.time)


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    if not hasattr(library, "crashfs_arm"):
        raise NotPreloadedError("crashfs is not in this process: start it with LD_PRELOAD=<what build() gave>")
    return library
