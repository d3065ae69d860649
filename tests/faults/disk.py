"""A disk in memory that knows what a power cut may undo.

Of a file, what was not synced when the power went may be there in part, or as zeros. A change of names (a creation,
deletion or rename) may not have happened unless a folder of it was synced afterwards, whatever happened to the others;
only of several changes of one name, no older one comes after a newer one. A rename has happened on both sides or on
none.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.shim import Operation


@dataclass(eq=False)
class File:
    """A file, its bytes known from its end.

    Args:
        number: Which one it is, in the order of creation.
        content: The bytes that it had at last.
        durable: What is on the disk.
        pending: What may not be: writes (offset, size) and truncations (None, size).
    """

    number: int
    content: bytes
    durable: bytes = b""
    pending: list[tuple[int | None, int]] = field(default_factory=list)

    def sync(self) -> None:
        """Bring everything to the disk."""
        self.durable = self._after(self.pending)
        self.pending = []

    def after_cut(self, dice: random.Random) -> bytes:
        """Give bytes that a power cut may leave."""
        kept = self.pending[: dice.randint(0, len(self.pending))]
        if kept and kept[-1][0] is not None:
            kept[-1] = (kept[-1][0], dice.randint(0, kept[-1][1]))
        survived = self._after(kept)
        # The length is noted elsewhere than the bytes, so it may be there before them.
        return survived.ljust(len(self._after(self.pending)), b"\0") if dice.random() < 0.5 else survived

    def _after(self, changes: list[tuple[int | None, int]]) -> bytes:
        data = bytearray(self.durable)
        for offset, size in changes:
            end = size if offset is None else offset + size
            data.extend(bytes(max(0, end - len(data))))
            if offset is None:
                del data[size:]
            else:
                data[offset:end] = self.content[offset:end].ljust(size, b"\0")
        return bytes(data)


@dataclass(eq=False)
class Folder:
    """A folder.

    Args:
        durable: The names on the disk.
        live: The names that a process sees.
    """

    durable: dict[str, "Node"] = field(default_factory=dict)
    live: dict[str, "Node"] = field(default_factory=dict)


Node = File | Folder
Change = list[tuple[Folder, str, Node | None]]
"""A name in a folder is this from now on, or nothing; all of it happens, or nothing of it."""


class Disk:
    """The folder of a run.

    Args:
        top: Its path.
        contents: The last bytes of its files, by their numbers; those of others are zeros.
    """

    def __init__(self, top: str, contents: dict[int, bytes]) -> None:
        self.root = Folder()
        self._top, self._contents = top, contents
        self._pending: dict[int, Change] = {}
        self._num_files = self._num_changes = 0

    def fill(self, folder: Folder, source: Path) -> None:
        """Take what is in a folder as long synced."""
        for path in sorted(source.iterdir()):
            node: Node = Folder() if path.is_dir() else self._new_file()
            if isinstance(node, Folder):
                self.fill(node, path)
            else:
                node.durable = path.read_bytes()
            folder.live[path.name] = folder.durable[path.name] = node

    def do(self, operation: Operation) -> None:
        """Do what a process did; what happened to files that are not known is passed over."""
        folder, name = self._find(operation.path)
        node = self.root if operation.path == self._top else folder.live.get(name) if folder else None
        match operation.name:
            case "create" | "mkdir" if folder:
                self._change([(folder, name, self._new_file() if operation.name == "create" else Folder())])
            case "unlink" | "rmdir" if folder:
                self._change([(folder, name, None)])
            case "rename" | "link":
                new, new_name = self._find(operation.other)
                gone: Change = [(folder, name, None)] if folder and operation.name == "rename" else []
                # What comes from outside is a file of which only its last bytes are known.
                self._change(gone + ([(new, new_name, node or self._new_file())] if new else []))
            case "empty" | "truncate" if isinstance(node, File):
                node.pending.append((None, operation.size))
            case "write" if isinstance(node, File):
                node.pending.append((operation.offset, operation.result))
            case "fsync" if isinstance(node, File):
                node.sync()
            case "fsync" if isinstance(node, Folder):
                for number in [number for number, change in self._pending.items() if _is_in(node, change)]:
                    self._settle(number)

    def settled_names(self) -> list[str]:
        """Give the names at the top that no power cut can take away."""
        unsure = {name for change in self._pending.values() for folder, name, _ in change if folder is self.root}
        return sorted(set(self.root.durable) - unsure)

    def lose_names(self, dice: random.Random) -> None:
        """Let some of the pending changes reach the disk: the first ones, or any."""
        numbers = list(self._pending)
        first = numbers[: dice.randint(0, len(numbers))]
        some = [number for number in numbers if dice.random() < 0.5]
        for number in dice.choice([first, some]):
            self._settle(number)

    def _new_file(self) -> File:
        self._num_files += 1
        return File(self._num_files, self._contents.get(self._num_files, b""))

    def _find(self, path: str) -> tuple[Folder | None, str]:
        """The folder that holds a path, None outside of the run's folder, and its name there."""
        if not path.startswith(self._top + "/"):
            return None, ""
        *parents, name = path.removeprefix(self._top + "/").split("/")
        folder: Node | None = self.root
        for parent in parents:
            folder = folder.live.get(parent) if isinstance(folder, Folder) else None
        return (folder, name) if isinstance(folder, Folder) else (None, "")

    def _change(self, change: Change) -> None:
        self._num_changes += 1
        self._pending[self._num_changes] = change
        for folder, name, node in change:
            _set(folder.live, name, node)

    def _settle(self, number: int) -> None:
        settled = self._pending.pop(number)
        for folder, name, node in settled:
            _set(folder.durable, name, node)
        for older in [change for other, change in self._pending.items() if other < number]:
            older[:] = [place for place in older if not any(place[:2] == new[:2] for new in settled)]


def _is_in(folder: Folder, change: Change) -> bool:
    return any(place[0] is folder for place in change)


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node
