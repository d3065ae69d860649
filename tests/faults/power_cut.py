"""Builds trees that a power cut could have left, from the log of what a run did and the bytes that it finished with."""

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.disk import Disk, File, Folder, Node
from tests.faults.shim import Operation


@dataclass(frozen=True)
class Cut:
    """What a power cut left.

    Args:
        folder: The tree; it lasts until the next one is asked for.
        after: How many operations of the log came before the cut.
        promised: The names in the run's folder that must have survived: synced, and no change of them under way.
    """

    folder: Path
    after: int
    promised: list[str]


def trees(
    log: Sequence[Operation],
    *,
    root: Path,
    finished: Path,
    into: Path,
    seed: int,
    count: int,
    first: int = 0,
    before: Path | None = None,
) -> Iterator[Cut]:
    """Give trees that a power cut could have left; the cuts are spread evenly over the log.

    Args:
        log: What was done below the run's folder, by all processes, in the order of time.
        root: The run's folder, as it was armed.
        finished: The folder as it was after the log, or a copy. Bytes of files that are no longer in it are zeros, and
            what was written twice to one place of a file is what was written last.
        into: A folder for the trees.
        seed: The same seed gives the same trees.
        count: Number of trees.
        first: How many operations come at least before the cut.
        before: A copy of the folder as it was before the log; by default it was empty.

    Yields:
        One tree after another.
    """
    top = os.path.realpath(root)
    last = _replayed(log, top, before, {})
    contents = {
        file.number: (finished / name).read_bytes()
        for name, file in _files(last.root, Path())
        if (finished / name).is_file()
    }
    for index in range(count):
        dice = random.Random(f"{seed}/{index}")
        after = first + index * (len(log) - first) // max(count - 1, 1)
        disk = _replayed(log[:after], top, before, contents)
        promised = disk.settled_names()
        disk.lose_names(dice)
        folder = into / f"cut-{index}"
        _write(disk.root, folder, dice)
        yield Cut(folder, after, promised)
        shutil.rmtree(folder)


def _replayed(log: Sequence[Operation], top: str, before: Path | None, contents: dict[int, bytes]) -> Disk:
    disk = Disk(top, contents)
    if before is not None:
        disk.fill(disk.root, before)
    for operation in log:
        if operation.result >= 0:
            disk.do(operation)
    return disk


def _files(folder: Folder, path: Path) -> Iterator[tuple[Path, File]]:
    node: Node
    for name, node in folder.live.items():
        if isinstance(node, File):
            yield path / name, node
        else:
            yield from _files(node, path / name)


def _write(folder: Folder, path: Path, dice: random.Random) -> None:
    path.mkdir(parents=True)
    for name, node in sorted(folder.durable.items()):
        if isinstance(node, File):
            (path / name).write_bytes(node.after_cut(dice))
        else:
            _write(node, path / name, dice)
