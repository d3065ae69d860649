"""Judges the output folder of a run by the layout that is promised, with no code of the product."""

import hashlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

_MANIFEST = "MANIFEST.json"
_CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def checkpoints(out: Path) -> list[int]:
    """Give the steps of all checkpoints that are there under their final names, whole or not, in ascending order."""
    return sorted(int(found[1]) for name in _names(out) if (found := _CHECKPOINT.fullmatch(name)))


def leftovers(out: Path) -> list[str]:
    """Give the names of staging folders and of folders that were being deleted."""
    return [name for name in _names(out) if name.startswith((".staging-", ".trash-"))]


def disk_bytes(out: Path) -> int:
    """Give the size of all files together, each counted once however many names it has; no link is followed."""
    found = {}
    for path in _below(out):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def violations(out: Path) -> list[str]:
    """Tell what is wrong with the checkpoints that are there under their final names.

    Args:
        out: The output folder of a run.

    Returns:
        One line for each fault; none when every checkpoint is what its manifest says, byte for byte.
    """
    found = []
    for name in _names(out):
        if name.startswith("checkpoint-"):
            found += [f"{name}: {fault}" for fault in _faults(out / name)]
    return found


def _faults(folder: Path) -> list[str]:
    matched = _CHECKPOINT.fullmatch(folder.name)
    if matched is None:
        return ["is no name for a checkpoint"]
    if not stat.S_ISDIR(folder.lstat().st_mode):
        return ["is not a folder"]
    manifest = folder / _MANIFEST
    if not _is_plain(manifest):
        return [f"{_MANIFEST} is missing or not a plain file"]
    try:
        content = json.loads(manifest.read_bytes(), object_pairs_hook=_without_repeats)
    except ValueError as error:
        return [f"{_MANIFEST} is not JSON: {error}"]
    faults = list(_wrong_fields(content, int(matched[1])))
    return faults or [*_unlisted(folder, content["files"]), *_damaged(folder, content["files"])]


def _wrong_fields(content: Any, step: int) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"{_MANIFEST} is not an object"
        return
    for name, expected in (("format", 1), ("step", step)):
        if type(content.get(name)) is not int or content[name] != expected:
            yield f"{_MANIFEST}: {name} must be {expected}, but is {content.get(name)!r}"
    size = content.get("world_size")
    if type(size) is not int or size < 1:
        yield f"{_MANIFEST}: world_size must be a positive number, but is {size!r}"
    files = content.get("files")
    if not isinstance(files, dict):
        yield f"{_MANIFEST}: files must be an object, but is {files!r}"
        return
    for name, fact in files.items():
        parts = PurePosixPath(name).parts
        if not parts or "/".join(parts) != name or name.startswith("/") or ".." in parts or name == _MANIFEST:
            yield f"{_MANIFEST}: {name!r} is no path of a file in the folder"
        elif not _is_fact(fact):
            yield f"{_MANIFEST}: {name} must have a size and a sha256, but has {fact!r}"


def _is_fact(fact: Any) -> bool:
    return (
        isinstance(fact, dict)
        and type(fact.get("size")) is int
        and isinstance(fact.get("sha256"), str)
        and _SHA256.fullmatch(fact["sha256"]) is not None
    )


def _unlisted(folder: Path, files: dict[str, Any]) -> Iterator[str]:
    """What is there besides the listed files: other files, links, pipes; folders may be empty."""
    for path in _below(folder):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield f"{name} is a symbolic link"
        elif not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            yield f"{name} is not a plain file"
        elif stat.S_ISREG(mode) and name not in files and name != _MANIFEST:
            yield f"{name} is not in {_MANIFEST}"


def _damaged(folder: Path, files: dict[str, Any]) -> Iterator[str]:
    for name, fact in files.items():
        path = folder / name
        if any(parent.is_symlink() for parent in [path, *path.parents] if parent.is_relative_to(folder)):
            continue  # told among what is unlisted
        if not _is_plain(path):
            yield f"{name} is missing"
            continue
        content = path.read_bytes()
        if len(content) != fact["size"]:
            yield f"{name} must have {fact['size']} bytes, but has {len(content)}"
        elif hashlib.sha256(content).hexdigest() != fact["sha256"]:
            yield f"{name} has other bytes than {_MANIFEST} says"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError(f"a name is there twice among {[name for name, _ in pairs]}")
    return content


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir()) if out.is_dir() else []


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder, at any depth; links are given, but not followed."""
    for path in [folder / name for name in _names(folder)]:
        yield path
        if not path.is_symlink():
            yield from _below(path)
