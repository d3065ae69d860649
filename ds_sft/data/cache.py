"""Where tokenised samples are kept: built once under a key of all that decides them, by one process for all.

No process group is involved: ranks and runs meet at a lock file, which the system opens when its holder dies.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ds_sft.config.caches import cache_folder
from ds_sft.data.table import Table
from ds_sft.data.table_file import BrokenTableError, may_replace, remove_leftovers, told_write_faults
from ds_sft.errors import ConfigError

log = logging.getLogger(__name__)

_KEY_LENGTH = 32
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.1

Parts = Mapping[str, str]
"""What decides the samples: name -> digest or value."""


def key_of(parts: Parts) -> str:
    """Give the key of what decides the samples.

    Args:
        parts: All of it.

    Returns:
        32 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def cache_file(preprocessed_path: str | None, *, key: str, role: str) -> Path:
    """Give the file for the samples of a data file.

    Args:
        preprocessed_path: A file, or a folder that exists; None for the folder that all runs share.
        key: Of the samples.
        role: `train` or `eval`; a file that was named is that of the training samples, and the other one lies beside.

    Returns:
        The file.
    """
    if preprocessed_path is None:
        return cache_folder() / f"{key}.arrow"
    named = Path(preprocessed_path).expanduser()
    if named.is_dir():
        return named / f"{key}.arrow"
    return named if role == "train" else named.with_name(f"{named.stem}-{role}{named.suffix}")


def map_or_build(file: Path, *, parts: Parts, build: Callable[[], None]) -> Table:
    """Map a file of samples, after building it where it is missing, damaged or of another key.

    The first process of a host builds; the others wait for the file. Where it does not come they build it themselves,
    and then find the same fault.

    Args:
        file: Of the samples.
        parts: What decides them.
        build: Writes the file.

    Returns:
        The samples.

    Raises:
        ConfigError: When the file is something else of the user's.
        SaveError: When it cannot be written.
    """
    found, _ = _look(file, parts)
    if found is not None:
        return found
    with told_write_faults(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(f".{file.name}.lock"), fallback_to_soft=False)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        _let_first_rank_build(file, lock)
    with _held(lock, file):
        found, reason = _look(file, parts)
        if found is None:
            _build(file, reason, build)
            found = Table(file)
    return found


def _look(file: Path, parts: Parts) -> tuple[Table | None, str]:
    """Give the samples if they are whole and those that are asked for, else why they are not."""
    try:
        table = Table(file)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except BrokenTableError as error:
        return None, error.reason
    built = table.note["parts"]
    if built == parts:
        return table, ""
    changed = ", ".join(name for name in parts if built.get(name) != parts[name])
    return None, f"was built under key {key_of(built)}, but the key is {key_of(parts)} now (changed: {changed})"


def _build(file: Path, reason: str, build: Callable[[], None]) -> None:
    if not may_replace(file):
        raise ConfigError(
            f"preprocessed_path: must be a file of tokenised samples or a new one, but {file} is something else; name "
            "another file"
        )
    if reason:
        log.warning("%s: %s: building it anew", file, reason)
    remove_leftovers(file)
    build()


def _let_first_rank_build(file: Path, lock: FileLock) -> None:
    """Wait until there is another file, or until nobody has been at it for a while."""
    before, idle_since = _identity(file), time.monotonic()
    while _identity(file) == before and time.monotonic() - idle_since < _PATIENCE_SECONDS:
        time.sleep(_POLL_SECONDS)
        if _is_held(lock):
            idle_since = time.monotonic()


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        told = file.stat()
    except FileNotFoundError:
        return None
    return told.st_ino, told.st_mtime_ns


def _is_held(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


@contextmanager
def _held(lock: FileLock, file: Path) -> Iterator[None]:
    with told_write_faults(file):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that tokenises into %s", file)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
