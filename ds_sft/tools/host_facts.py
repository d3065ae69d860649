"""Judges what one host is like."""

import os
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import msgspec
from packaging.requirements import Requirement

from ds_sft.config.caches import cache_folder
from ds_sft.hosts.env_file import env_file_faults, env_files
from ds_sft.tools.facts import Fact, fault, fault_in_words, good, warning

_GIB = 1 << 30
_MIB_OF_GIB = 1024
_LEAST_SHM = _GIB
_LEAST_DISK = 10 * _GIB
_LEAST_MEMORY = 4 * _GIB
_LEAST_SPEED = 10e6
_STALE_SECONDS = 600.0
_SHOWN_PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "peft")


class Trial(msgspec.Struct, frozen=True):
    """What a folder did when it was written to; see `looking.trial`."""

    fault: str
    bytes_per_second: float
    has_locks: bool


class Observed(msgspec.Struct, frozen=True):
    """What was seen on one host; see `looking.look`."""

    time: float
    hostname: str
    python: str
    packages: dict[str, str | None]
    digests: dict[str, str | None]
    cores: int
    memory_bytes: int
    shm_bytes: int
    folder: str
    disk_bytes: int
    trial: Trial
    umask: int
    gpus: list[list[str]]
    gpu_users: list[list[str]]
    locks: list[tuple[str, float]]
    name_address: str
    address: str
    interface: str


def requirements() -> list[Requirement]:
    """Give the versions that were tested.

    Returns:
        One for each package that we need here; empty where we are not installed.
    """
    try:
        told = metadata.requires("ds_sft") or []
    except metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in told]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def facts_of(observed: Observed, wanted: list[Requirement], *, paths: dict[str, str]) -> Iterator[Fact]:
    """Judge one host.

    Args:
        observed: What was seen.
        wanted: Versions that were tested.
        paths: Name -> path of what the job reads.

    Yields:
        The facts.
    """
    yield _versions(observed, wanted)
    yield from _missing(observed, paths)
    yield from _gpu_facts(observed)
    yield _memory(observed)
    yield from _locks(observed)
    yield from _disk(observed)
    yield _mask(observed)


def env_facts() -> Iterator[Fact]:
    """Judge what would travel to other hosts on a command line.

    Yields:
        The facts; none where there is no such file.
    """
    for path in env_files():
        told = env_file_faults(path)
        yield from (fault_in_words("environment", line) for line in told)
        if not told:
            mode = stat.S_IMODE(path.stat().st_mode)
            yield good("environment", f"{path} (mode {mode:04o}) holds no secret and needs no quoting")


def gib(num_bytes: float) -> str:
    """Write a size.

    Args:
        num_bytes: The size.

    Returns:
        As in `1.5 GiB`.
    """
    return f"{num_bytes / _GIB:.1f} GiB"


def _versions(observed: Observed, wanted: list[Requirement]) -> Fact:
    found = observed.packages
    told = [f"python {observed.python}", *(f"{name} {found[name]}" for name in _SHOWN_PACKAGES if found.get(name))]
    wrong = []
    for one in wanted:
        version = found.get(one.name)
        if version is None:
            wrong.append(f"{one.name} is missing (needs {one.specifier})")
        elif not one.specifier.contains(version.partition("+")[0], prereleases=True):
            wrong.append(f"{one.name} {version} (tested {one.specifier})")
    if wrong:
        return fault("versions", ", ".join(wrong), "pip install -e . -c constraints.txt")
    if not wanted:
        return warning(
            "versions", f"{' · '.join(told)}; ds_sft is not installed", "pip install -e . -c constraints.txt"
        )
    return good("versions", f"{' · '.join(told)}: in the tested range")


def _missing(observed: Observed, paths: dict[str, str]) -> Iterator[Fact]:
    for name, digest in observed.digests.items():
        if digest is None:
            yield fault(name, f"{paths[name]} does not exist", "copy it there, or use a shared folder")


def _gpu_facts(observed: Observed) -> Iterator[Fact]:
    if not observed.gpus:
        yield good("GPUs", f"none; {observed.cores} CPU cores")
        return
    names = dict.fromkeys(f"{name} {int(total) / _MIB_OF_GIB:.0f} GiB" for _, _, name, total, _ in observed.gpus)
    yield good("GPUs", f"{len(observed.gpus)} x {', '.join(names)}")
    for index, identity, _, total, used in observed.gpus:
        users = [pid for owner, pid, _ in observed.gpu_users if owner == identity]
        if not users:
            continue
        told = f"GPU {index}: {int(used) / _MIB_OF_GIB:.1f} GiB used by process {', '.join(users)}"
        make = fault if int(used) > int(total) / 2 else warning
        yield make("GPUs", told, "end it, or choose other GPUs with CUDA_VISIBLE_DEVICES")


def _memory(observed: Observed) -> Fact:
    told = f"{gib(observed.memory_bytes)} of memory free, /dev/shm {gib(max(0, observed.shm_bytes))}"
    if observed.shm_bytes < _LEAST_SHM:
        return warning("memory", f"{told} (< {gib(_LEAST_SHM)}): data workers will crash", "docker run --shm-size=8g")
    if observed.memory_bytes < _LEAST_MEMORY:
        return warning("memory", told, "end other programs")
    return good("memory", told)


def _locks(observed: Observed) -> Iterator[Fact]:
    for path, seconds in observed.locks:
        if seconds >= _STALE_SECONDS:
            told = (
                f"{path} is {seconds / 60:.0f} min old; a build that was killed leaves it, and all others wait for it"
            )
            yield warning("build lock", told, f"if no compiler runs: rm {path}")


def _disk(observed: Observed) -> Iterator[Fact]:
    trial = observed.trial
    told = f"{observed.folder}: {gib(observed.disk_bytes)} free"
    if trial.fault:
        yield fault("disk", f"{told}, but writing failed: {trial.fault}", "mend its mode, free space, or name another")
        return
    told += f", {trial.bytes_per_second / 1e6:.0f} MB/s with fsync, rename works"
    if observed.disk_bytes < _LEAST_DISK:
        yield warning("disk", told, "free some space: a checkpoint of fp32 AdamW has 14 bytes a parameter")
    elif trial.bytes_per_second < _LEAST_SPEED:
        yield warning("disk", told, "expect long saves, or name another output_dir")
    elif not trial.has_locks:
        yield warning("disk", f"{told}, locks do not", "never start two jobs with one output_dir at the same moment")
    else:
        yield good("disk", f"{told}, locks work")


def _mask(observed: Observed) -> Fact:
    told = f"{observed.umask:04o}"
    if observed.umask & (stat.S_IRGRP | stat.S_IROTH):
        return warning("umask", f"{told}: others cannot read what is saved", "umask 022, if they shall")
    return good("umask", told)


def extensions_folders() -> list[str]:
    """Name the folders below which compiled extensions may lie: ours, and the one that torch takes by itself.

    Returns:
        Paths that need not exist.
    """
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    return (
        [named] if named else [str(cache_folder() / "torch_extensions"), str(Path.home() / ".cache/torch_extensions")]
    )
