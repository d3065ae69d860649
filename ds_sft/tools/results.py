"""A file of results, one JSON object a line, that an interrupted command goes on with; what made it lies beside it."""

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EAGAIN
from pathlib import Path
from typing import Any

from ds_sft.errors import ConfigError, LaunchError, ModelError, SaveError, raise_together
from ds_sft.model.folder import read_json
from ds_sft.save.files import replace_file

log = logging.getLogger(__name__)

ENDING = ".settings.json"
"""Behind the name of a file of results: the file beside it that tells what made it."""
_READ = 1 << 20


@dataclass(frozen=True)
class Results:
    """A file of results that is open for more.

    Args:
        path: The file.
        descriptor: Of the open file.
        num_done: Lines that were there before.
    """

    path: Path
    descriptor: int
    num_done: int

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows behind the others.

        Args:
            rows: What JSON can hold; written in ASCII, so that no control character of a text reaches a terminal.

        Raises:
            SaveError: When the disk is full or fails.
        """
        left = memoryview("".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows).encode())
        try:
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError as error:
            raise SaveError(f"{self.path}: {error.strerror}; the same command goes on from here") from error


@contextmanager
def open_results(path: Path, settings: Mapping[str, Any]) -> Iterator[Results]:
    """Begin a file of results, or go on with one that the same settings made; one process at a time.

    Args:
        path: The file.
        settings: All that decides the results.

    Yields:
        The open file; a last line that is not whole has been cut off.

    Raises:
        ConfigError: When other settings made the file, or nothing tells which.
        LaunchError: When another process writes it.
        SaveError: When it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise SaveError(f"output: must be writable, but {path}: {error.strerror}; name another file") from error
    try:
        _lock(descriptor, path)
        num_done = _num_lines(descriptor, path)
        if num_done:
            _refuse_other_settings(path, settings)
            log.info("%s: going on behind %d lines", path, num_done)
        else:
            replace_file(_beside(path), (json.dumps(dict(settings), indent=1) + "\n").encode())
        yield Results(path, descriptor, num_done)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ENDING)


def _lock(descriptor: int, path: Path) -> None:
    """Hold the file until this process ends; file systems without locks are believed to have one writer."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (EACCES, EAGAIN):
            raise LaunchError(f"output: must have one writer, but {path} is being written; wait, or stop it") from error


def _num_lines(descriptor: int, path: Path) -> int:
    """Count the whole lines, and cut off what is behind the last one."""
    num_lines, end, place = 0, 0, 0
    while block := os.pread(descriptor, _READ, place):
        num_lines += block.count(b"\n")
        last = block.rfind(b"\n")
        end = place + last + 1 if last >= 0 else end
        place += len(block)
    if end < place:
        log.warning(
            "%s: its last line is not whole: %d bytes are cut off, and the question is asked again", path, place - end
        )
        os.ftruncate(descriptor, end)
    return num_lines


def _refuse_other_settings(path: Path, settings: Mapping[str, Any]) -> None:
    file = _beside(path)
    if not file.is_file():
        raise ConfigError(f"output: must be new, or lie beside {file.name}, but {path} does not; name another file")
    try:
        stored = read_json(file)
    except ModelError as error:
        raise ConfigError(f"{error}; or name another --output") from error
    pairs = {name: (stored.get(name), settings.get(name)) for name in sorted({*stored, *settings})}
    raise_together(
        [
            ConfigError(f"{name}: must be {old!r} as in {file}, but is {new!r}; name another --output")
            for name, (old, new) in pairs.items()
            if old != new
        ]
    )
