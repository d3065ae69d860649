"""Looks at the host it runs on. The source is sent to hosts that may lack everything: standard library only."""

import fcntl
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
"""Plain values for JSON."""

_WHOLE_BYTES = 1 << 24
_ENDS_BYTES = 1 << 20
_TRIAL_BYTES = 1 << 23
_SIOCGIFADDR = 0x8915
_SIGNIFICANT = (".py", ".json", ".html")


def look(*, packages: list[str], paths: dict[str, str], output_dir: str, towards: str, extensions: list[str]) -> Answer:
    """Tell what this host is like.

    Args:
        packages: Whose versions are told.
        paths: Name -> path of what must be the same on all hosts.
        output_dir: Of the job; need not exist.
        towards: Address of the first host.
        extensions: Folders below which compiled extensions may lie.

    Returns:
        Plain values.
    """
    folder = nearest(Path(output_dir))
    address = _own_address(towards)
    return {
        "time": time.time(),
        "hostname": socket.gethostname(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in packages},
        "digests": {name: digest(Path(path)) for name, path in paths.items()},
        "cores": os.cpu_count() or 1,
        "memory_bytes": _available_memory(),
        "shm_bytes": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else -1,  # noqa: S108
        "folder": str(folder),
        "disk_bytes": shutil.disk_usage(folder).free,
        "trial": trial(folder),
        "umask": _umask(),
        "gpus": gpus(),
        "gpu_users": _smi("--query-compute-apps=gpu_uuid,pid,used_memory"),
        "locks": [[str(lock), time.time() - lock.stat().st_mtime] for lock in _locks(extensions)],
        "name_address": _resolved(socket.gethostname()),
        "address": address,
        "interface": _interface_of(address),
    }


def digest(path: Path) -> str | None:
    """Tell the content of a file or folder apart from others.

    Args:
        path: Of either.

    Returns:
        Hexadecimal digits; None when there is nothing. Of large files only size and ends count, of folders the names
            and sizes of all files and the content of code and settings.
    """
    if not path.exists():
        return None
    found = hashlib.sha256()
    for file in sorted(_files(path)):
        size = file.stat().st_size
        found.update(f"{file.relative_to(path)}\0{size}\0".encode())
        if path.is_file() or file.suffix in _SIGNIFICANT:
            with file.open("rb") as stream:
                if size <= _WHOLE_BYTES:
                    found.update(stream.read())
                else:
                    found.update(stream.read(_ENDS_BYTES))
                    stream.seek(-_ENDS_BYTES, os.SEEK_END)
                    found.update(stream.read())
    return found.hexdigest()


def trial(folder: Path) -> Answer:
    """Do in a folder what a checkpoint needs: write, fsync, rename, lock.

    Args:
        folder: Must exist.

    Returns:
        `fault`, empty when all went well; bytes a second to the disk; whether locks work.
    """
    first, second = (folder / f".ds_sft.trial-{socket.gethostname()}-{os.getpid()}{part}" for part in ("", "-renamed"))
    started = time.monotonic()
    try:
        with first.open("xb") as stream:
            stream.write(bytes(_TRIAL_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
            seconds = time.monotonic() - started
            has_locks = _can_lock(stream.fileno())
        first.rename(second)
    except OSError as error:
        return {"fault": error.strerror or str(error), "bytes_per_second": 0.0, "has_locks": False}
    finally:
        for left in (first, second):
            left.unlink(missing_ok=True)
    return {"fault": "", "bytes_per_second": _TRIAL_BYTES / max(seconds, 1e-6), "has_locks": has_locks}


def gpus() -> list[list[str]]:
    """List the GPUs.

    Returns:
        Number, id, name, total and used MiB of each; empty without a driver.
    """
    return _smi("--query-gpu=index,uuid,name,memory.total,memory.used")


def nearest(path: Path) -> Path:
    """Give a folder, or what exists of the way to it.

    Args:
        path: Absolute.

    Returns:
        A folder that exists.
    """
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _locks(folders: list[str]) -> list[Path]:
    return sorted({lock for folder in folders for lock in Path(folder).rglob("lock") if lock.is_file()})


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for file in path.rglob("*") if path.is_dir() else ():
        if file.is_file() and "__pycache__" not in file.parts:
            yield file


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return -1


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def _can_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _smi(query: str) -> list[list[str]]:
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if done.returncode else [line.split(", ") for line in done.stdout.splitlines() if ", " in line]


def _resolved(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""


def _own_address(towards: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _interface_of(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue
            if socket.inet_ntoa(told[20:24]) == address:
                return name
    return ""
