"""One job for each output folder: a lock that ends with its holder, however that ends, and tells who holds it."""

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from ds_sft.errors import LaunchError

log = logging.getLogger(__name__)

_LOCK = ".ds_sft.lock"
_OWNER = ".ds_sft.lock.json"
_CLAIM = ".ds_sft.claim"
# For a holder that is about to leave, and again for the facts of a new one.
_PATIENCE_SECONDS = 0.3
_POLL_SECONDS = 0.05
_BEAT_SECONDS = 20.0
_DEAD_AFTER_SECONDS = 120.0
# Lustre without -o flock, NFS without a lock service.
_HAS_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})


class _Owner(msgspec.Struct, frozen=True):
    """Who uses a folder: process number, host, and since when."""

    pid: int
    host: str
    started: str


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Be the only job that uses an output folder; rank zero calls this before it looks into the folder.

    The system frees the lock when the process dies, and forked or started children do not keep it. Where the file
    system knows no locks, a file that is touched every 20 s stands for one, and is believed for 120 s.

    Args:
        folder: The output folder; made when absent.

    Yields:
        Nothing.

    Raises:
        LaunchError: When another job uses the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # filelock closes its file in forked children: a worker that outlives the job does not hold on to the folder.
    lock = FileLock(folder / _LOCK, timeout=_PATIENCE_SECONDS, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise _refusal(folder) from error
    except OSError as error:
        if error.errno not in _HAS_NO_LOCKS:
            raise
        log.warning(
            "output_dir: %s is on a file system without locks (%s): %s stands for one, and after a kill the folder is "
            "free again %d s later",
            folder,
            error.strerror,
            _CLAIM,
            _DEAD_AFTER_SECONDS,
        )
        with _claimed(folder):
            yield
        return
    try:
        with _told(folder):
            yield
    finally:
        lock.release()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Leave our facts beside the lock, so that another job can say who holds it."""
    file = folder / _OWNER
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    with fresh.open("xb") as stream:
        stream.write(msgspec.json.encode(_Owner(os.getpid(), socket.gethostname(), started)))
    fresh.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _refusal(folder: Path, remedy: str = "wait for it, stop it, or name another folder") -> LaunchError:
    owner = _owner_of(folder)
    told = f"process {owner.pid} on host {owner.host} since {owner.started}" if owner else "another process"
    return LaunchError(f"output_dir: must be used by one job at a time, but {folder} is used by {told}; {remedy}")


def _owner_of(folder: Path) -> _Owner | None:
    given_up_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return msgspec.json.decode((folder / _OWNER).read_bytes(), type=_Owner)
        except (OSError, msgspec.MsgspecError):
            if time.monotonic() > given_up_at:
                return None
        time.sleep(_POLL_SECONDS)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold a file that only one process can make, and touch it for as long as we live."""
    claim = folder / _CLAIM
    refused_at = time.monotonic() + _PATIENCE_SECONDS
    while (own := _made(claim)) is None:
        if time.monotonic() > refused_at:
            raise _refusal(folder, f"wait for it, or {_DEAD_AFTER_SECONDS:g} s after it died, or name another folder")
        time.sleep(_POLL_SECONDS)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(claim, own, ended), name="output-lock", daemon=True)
    heart.start()
    try:
        with _told(folder):
            yield
    finally:
        ended.set()
        heart.join()
        if _is_still(claim, own):
            claim.unlink()


def _made(claim: Path) -> os.stat_result | None:
    """Make the claim, or sweep a dead job's away for the next try."""
    try:
        with claim.open("xb") as stream:
            return os.fstat(stream.fileno())
    except FileExistsError:
        _sweep_away(claim)
        return None


def _sweep_away(claim: Path) -> None:
    # Its time is told by the clock of the file server, as the claim's.
    probe = claim.with_name(f"{claim.name}-{socket.gethostname()}-{os.getpid()}")
    probe.unlink(missing_ok=True)
    probe.touch(exist_ok=False)
    # Other jobs may do the same at this moment.
    with suppress(FileNotFoundError, FileExistsError):
        found = claim.stat()
        if probe.stat().st_mtime - found.st_mtime >= _DEAD_AFTER_SECONDS:
            claim.replace(probe)
            if not os.path.samestat(found, probe.stat()):
                # Another job was faster, and this is its new claim.
                os.link(probe, claim)
    probe.unlink()


def _beat(claim: Path, own: os.stat_result, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_SECONDS):
        if not _is_still(claim, own):
            log.error(
                "output_dir: must be used by one job at a time, but %s is no longer ours: this process stood still for "
                "%d s, or somebody removed it; stop one of the jobs",
                claim,
                _DEAD_AFTER_SECONDS,
            )
            return
        try:
            os.utime(claim)
        except OSError as error:
            log.warning("output_dir: %s must be touched while the job runs, but: %s", claim, error.strerror)


def _is_still(claim: Path, own: os.stat_result) -> bool:
    try:
        return os.path.samestat(claim.stat(), own)
    except FileNotFoundError:
        return False
