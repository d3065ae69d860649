"""Checkpoints that are whole or not there: written under another name, listed in a manifest, renamed last.

Every rank writes; one rank a disk publishes. On a shared folder that is rank zero; where hosts have folders of their
own under the same name, it is the first rank of each host. Reading takes the newest checkpoint that is whole on every
disk.
"""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ds_sft.reporting import rank
from ds_sft.save.files import FileFact, sync_folder
from ds_sft.save.manifest import FORMAT, Manifest, faults_of, is_resumable, write_manifest
from ds_sft.save.shards import UNFINISHED
from ds_sft.zero.ranks import exchange, together

log = logging.getLogger(__name__)

_STAGING = ".staging-"
_TRASH = ".trash-"
_PROBE = ".probe-"
_PART = re.compile(r"\..+\.part")
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")

Written = Mapping[str, FileFact]
"""Path below the folder -> what the file must be."""


@dataclass(frozen=True)
class Disk:
    """The ranks that see the same output folder.

    Args:
        folder: The output folder.
        members: Their numbers; the first one publishes.
        rank: The own one.
    """

    folder: Path
    members: tuple[int, ...]
    rank: int

    @property
    def is_leader(self) -> bool:
        """Whether this rank publishes."""
        return self.rank == self.members[0]

    @classmethod
    def find(cls, folder: Path) -> Self:
        """Find out who sees this folder; every rank must call this.

        Args:
            folder: The output folder; made when absent.

        Returns:
            The disk of this rank.
        """
        own = rank()
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{_PROBE}{exchange(secrets.token_hex(8))[0]}-{own}"
        probe.touch(exist_ok=True)
        exchange(own)
        seen = tuple(
            sorted(int(found.name.rsplit("-", 1)[1]) for found in folder.glob(f"{probe.name.rsplit('-', 1)[0]}-*"))
        )
        exchange(own)
        probe.unlink(missing_ok=True)
        # Before anybody clears away what interrupted runs have left.
        exchange(own)
        return cls(folder, seen, own)

    def share_of(self, names: Sequence[str]) -> Sequence[str]:
        """Give the part of a list that is this rank's, when all ranks of the disk share the work.

        Args:
            names: The same on all of them.

        Returns:
            Every n-th name.
        """
        return names[self.members.index(self.rank) :: len(self.members)]


def clear(disk: Disk) -> None:
    """Remove what an interrupted save or removal has left; only while no other job uses the folder.

    Args:
        disk: Of this rank.
    """
    if not disk.is_leader:
        return
    for left in list(disk.folder.iterdir()):
        home = disk.folder / left.name.removeprefix(_TRASH)
        if left.name.startswith(_TRASH) and not os.path.lexists(home) and not faults_of(left):
            # It was being replaced, or removed as an old one: then it is removed again later.
            log.info("%s is whole and gets its name back", left)
            left.rename(home)
        elif left.name.startswith((_STAGING, _TRASH, _PROBE, UNFINISHED)) or _PART.fullmatch(left.name):
            log.info("removing %s, which an interrupted run has left", left)
            _clear_away(left)


def publish(disk: Disk, *, step: int, facts: Mapping[str, Any], write: Callable[[Path], Written]) -> Path:
    """Write a checkpoint and give it its name when all of it is on the disk; every rank must call this.

    Args:
        disk: Of this rank.
        step: Of the checkpoint; rank zero's counts.
        facts: For the manifest.
        write: Writes this rank's files into a folder and tells what they are.

    Returns:
        The published folder.

    Raises:
        DsSftError: On every rank, when any of them failed; nothing is published then.
    """
    step = exchange(step)[0]
    staging = disk.folder / f"{_STAGING}{step}"
    target = disk.folder / f"checkpoint-{step}"
    try:
        together(lambda: staging.mkdir() if disk.is_leader else None)
        written = together(lambda: write(staging))
        files = {name: fact for member in disk.members for name, fact in written[member].items()}
        manifest = Manifest(FORMAT, step, len(written), files, dict(facts))
        together(lambda: _finish(staging, target, manifest) if disk.is_leader else None)
    except BaseException:
        if disk.is_leader:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def retain(disk: Disk, *, step: int, newest: int | None, best: Path | None) -> None:
    """Remove old checkpoints, once the newest has proven to be whole; every rank must call this.

    Args:
        disk: Of this rank.
        step: Of the newest one; what lies behind it is not ours to judge.
        newest: How many stay; None for all.
        best: One that stays in any case.

    Raises:
        SaveError: On every rank, when one could not be removed.
    """
    if newest is None:
        return
    kept = [found for found in checkpoints_of(disk.folder) if found[0] <= step]
    names = {folder.name for _, folder in kept[: max(newest, 1)]} | ({best.name} if best else set())
    victims = [folder for _, folder in kept if folder.name not in names]

    def remove() -> None:
        if disk.is_leader and victims and not faults_of(kept[0][1], is_deep=False):
            for victim in victims:
                _remove(victim)

    together(remove)


def newest_whole(disk: Disk) -> Path | None:
    """Find the newest checkpoint that verifies on every disk; every rank must call this.

    Args:
        disk: Of this rank.

    Returns:
        Its folder, or None.
    """
    found = exchange([step for step, _ in checkpoints_of(disk.folder)])
    for step in sorted({step for steps in found for step in steps}, reverse=True):
        folder = disk.folder / f"checkpoint-{step}"
        faults = verify(disk, folder)
        if not faults and is_resumable(folder):
            return folder
        faults = faults or ["it holds the model only"]
        log.warning("%s is skipped: %s", folder, faults[0])
    return None


def verify(disk: Disk, folder: Path) -> list[str]:
    """Check a checkpoint on every disk, each rank a part of its files; every rank must call this.

    Args:
        disk: Of this rank.
        folder: The checkpoint.

    Returns:
        The same faults on every rank; none for a whole one.
    """
    return [fault for faults in exchange(faults_of(folder, share=disk.share_of)) for fault in faults]


def _finish(staging: Path, target: Path, manifest: Manifest) -> None:
    write_manifest(staging, manifest)
    old = _trash_of(target)
    _clear_away(old)
    has_old = os.path.lexists(target)
    if has_old:
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if has_old:
            old.rename(target)
        raise
    sync_folder(target.parent)
    _clear_away(old)


def checkpoints_of(folder: Path) -> list[tuple[int, Path]]:
    """Give the checkpoints of a run by their names.

    Args:
        folder: The output folder.

    Returns:
        Step and folder, the newest first; not checked.
    """
    if not folder.is_dir():
        return []
    found = [(int(name[1]), path) for path in folder.iterdir() if (name := _CHECKPOINT.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint's name away from it before its files, so that it is never seen half removed."""
    trash = _trash_of(checkpoint)
    _clear_away(trash)
    checkpoint.rename(trash)
    # A power cut must not bring the name back after the files have gone.
    sync_folder(checkpoint.parent)
    _clear_away(trash)


def _trash_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{_TRASH}{checkpoint.name}")


def _clear_away(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
