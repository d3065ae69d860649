"""MANIFEST.json: every file of a folder with its size and hash, written last; a folder without it is not whole."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ds_sft.save.files import FileFact, fact_of, sync_folder, write_new_json

MANIFEST = "MANIFEST.json"
FORMAT = 1


class Manifest(msgspec.Struct, frozen=True):
    """The content of MANIFEST.json, written last.

    Args:
        format: Version of the layout.
        step: Of the checkpoint.
        world_size: Ranks that wrote it.
        files: Every other file.
        facts: What the run was: fingerprint and versions.
    """

    format: int
    step: int
    world_size: int
    files: dict[str, FileFact]
    facts: dict[str, Any]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder whose other files are on the disk already, and bring their names there.

    Args:
        folder: Without a manifest.
        manifest: Its content.
    """
    part = folder / f".{MANIFEST}.part"
    part.unlink(missing_ok=True)
    write_new_json(part, msgspec.to_builtins(manifest))
    for inner in sorted({folder, *((folder / name).parent for name in manifest.files)}, reverse=True):
        sync_folder(inner)
    part.rename(folder / MANIFEST)
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Args:
        folder: The checkpoint.

    Returns:
        The manifest; paths that lead out of the folder are refused.

    Raises:
        ValueError: When it is no manifest.
        OSError: When it cannot be read.
    """
    descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        manifest = msgspec.json.decode(stream.read(), type=Manifest)
    if manifest.format != FORMAT:
        raise ValueError(f"its format is {manifest.format}, this version reads {FORMAT}")
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"it names {name!r}, which lies outside")
    return manifest


def is_resumable(folder: Path) -> bool:
    """Tell whether training can go on from a folder.

    Args:
        folder: With a manifest.

    Returns:
        False for one that holds the model only.
    """
    return bool(read_manifest(folder).facts.get("resumable", True))


def faults_of(
    folder: Path, *, is_deep: bool = True, share: Callable[[Sequence[str]], Sequence[str]] = lambda names: names
) -> list[str]:
    """Hold a checkpoint against its manifest.

    Args:
        folder: The checkpoint.
        is_deep: Whether hashes are compared, not only sizes.
        share: Picks the files whose hashes are compared here.

    Returns:
        What is wrong; the list is empty for a whole checkpoint.
    """
    if folder.is_symlink() or not folder.is_dir():
        return ["it is no folder"]
    try:
        manifest = read_manifest(folder)
        return list(_file_faults(folder, manifest, share(sorted(manifest.files)) if is_deep else ()))
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, RecursionError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]


def _file_faults(folder: Path, manifest: Manifest, hashed: Sequence[str]) -> Iterator[str]:
    for name, fact in manifest.files.items():
        path = folder / name
        if path.resolve() != folder.resolve() / name:
            yield f"{name} is a link, or lies behind one"
        elif not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != fact.size:
            yield f"{name} must have {fact.size} bytes, but has {path.stat().st_size}"
        elif name in hashed and fact_of(path) != fact:
            yield f"{name} is not what was written (its hash differs)"
