"""A folder is whole when every file is what its manifest says, and every other state is told."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds_sft.save.files import FileFact, fact_of
from ds_sft.save.manifest import FORMAT, MANIFEST, Manifest, faults_of, read_manifest, write_manifest

FACTS = {"fingerprint": {"seed": 7}, "resumable": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole one with a file in it and a file below it."""
    whole = tmp_path / "checkpoint-3"
    (whole / "state").mkdir(parents=True)
    (whole / "weights").write_bytes(b"0123456789")
    (whole / "state" / "rank").write_bytes(b"abc")
    files = {name: fact_of(whole / name) for name in ("weights", "state/rank")}
    write_manifest(whole, Manifest(FORMAT, 3, 2, files, FACTS))
    return whole


def change(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def flip(folder: Path) -> None:
    (folder / "weights").write_bytes(b"0123456788")


def truncate(folder: Path) -> None:
    os.truncate(folder / "state" / "rank", 2)


def remove(folder: Path) -> None:
    (folder / "weights").unlink()


def replace_by_link(folder: Path) -> None:
    (folder / "weights").rename(folder.parent / "outside")
    (folder / "weights").symlink_to(folder.parent / "outside")


def replace_by_folder(folder: Path) -> None:
    (folder / "weights").unlink()
    (folder / "weights").mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (flip, "weights is not what was written (its hash differs)"),
    "a truncated file": (truncate, "state/rank must have 3 bytes, but has 2"),
    "a missing file": (remove, "weights is missing"),
    "a link": (replace_by_link, "weights is a link, or lies behind one"),
    "a folder": (replace_by_folder, "weights is missing"),
}


def write(content: bytes) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / MANIFEST).write_bytes(content)

    return do


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def replace_manifest_by_folder(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()


def replace_manifest_by_link(folder: Path) -> None:
    (folder / MANIFEST).rename(folder.parent / "outside")
    (folder / MANIFEST).symlink_to(folder.parent / "outside")


NESTED = b'{"format": 1, "step": 3, "world_size": 2, "files": {}, "facts": {"a": ' + b"[" * 100_000
NO_MANIFEST: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (remove_manifest, "MANIFEST.json is missing"),
    "empty": (write(b""), "MANIFEST.json cannot be read: "),
    "not JSON": (write(b"{"), "MANIFEST.json cannot be read: "),
    "not UTF-8": (write(b'{"format": "\xff"}'), "MANIFEST.json cannot be read: "),
    "deeply nested": (write(NESTED), "MANIFEST.json cannot be read: "),
    "a list": (write(b"[]"), "MANIFEST.json cannot be read: "),
    "without a field": (write(b'{"format": 1}'), "MANIFEST.json cannot be read: "),
    "another format": (
        lambda folder: change(folder, {"format": 2}),
        "MANIFEST.json cannot be read: its format is 2, this version reads 1",
    ),
    "a size that is text": (
        lambda folder: change(folder, {"files": {"weights": {"size": "10", "sha256": ""}}}),
        "MANIFEST.json cannot be read: ",
    ),
    "a folder": (replace_manifest_by_folder, "MANIFEST.json cannot be read: "),
    "a link": (replace_manifest_by_link, "MANIFEST.json cannot be read: "),
}


def test_a_whole_folder_has_no_fault(folder: Path) -> None:
    assert faults_of(folder) == []


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    assert read_manifest(folder) == Manifest(
        FORMAT, 3, 2, {name: fact_of(folder / name) for name in ("weights", "state/rank")}, FACTS
    )


def test_only_the_manifest_itself_is_not_listed(folder: Path) -> None:
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [MANIFEST, "rank", "weights"]


def test_a_part_that_an_interrupted_write_has_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / f".{MANIFEST}.part").write_text("half")
    write_manifest(tmp_path, Manifest(FORMAT, 1, 1, {}, {}))
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_the_names_of_all_files_are_on_the_disk_before_the_manifest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "rank").touch()
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append((os.fstat(number).st_ino, (tmp_path / MANIFEST).exists()))
    )
    write_manifest(tmp_path, Manifest(FORMAT, 1, 1, {"state/rank": fact_of(tmp_path / "state" / "rank")}, {}))
    assert {(path.stat().st_ino, False) for path in (tmp_path, tmp_path / "state", tmp_path / MANIFEST)} <= set(synced)
    assert synced[-1] == (tmp_path.stat().st_ino, True)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_by_name(folder: Path, damage: str) -> None:
    do, told = DAMAGES[damage]
    do(folder)
    assert faults_of(folder) == [told]


def test_every_damaged_file_is_told(folder: Path) -> None:
    remove(folder)
    truncate(folder)
    assert sorted(faults_of(folder)) == ["state/rank must have 3 bytes, but has 2", "weights is missing"]


@pytest.mark.parametrize("damage", NO_MANIFEST)
def test_a_manifest_that_is_none_is_told(folder: Path, damage: str) -> None:
    do, told = NO_MANIFEST[damage]
    do(folder)
    (found,) = faults_of(folder)
    assert found.startswith(told)


@pytest.mark.parametrize("name", ["../outside", "state/../../outside", "/etc/hostname", "a\0b"])
def test_a_manifest_that_names_a_file_outside_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_bytes(b"abc")
    change(folder, {"files": {name: {"size": 3, "sha256": fact_of(folder.parent / "outside").sha256}}})
    assert faults_of(folder) == [f"MANIFEST.json cannot be read: it names {name!r}, which lies outside"]
    with pytest.raises(ValueError, match="which lies outside"):
        read_manifest(folder)


def test_a_manifest_that_names_a_file_through_a_linked_folder_is_refused(folder: Path) -> None:
    (folder / "state").rename(folder.parent / "outside")
    (folder / "state").symlink_to(folder.parent / "outside")
    assert faults_of(folder) != []


@pytest.mark.parametrize("kind", ["missing", "a file", "a link"])
def test_what_is_no_folder_is_told(folder: Path, kind: str) -> None:
    asked = folder.parent / "asked"
    if kind == "a file":
        asked.touch()
    elif kind == "a link":
        asked.symlink_to(folder)
    assert faults_of(asked) == ["it is no folder"]


def test_a_shallow_look_sees_sizes_only(folder: Path) -> None:
    flip(folder)
    assert faults_of(folder, is_deep=False) == []
    truncate(folder)
    assert faults_of(folder, is_deep=False) == ["state/rank must have 3 bytes, but has 2"]


def test_a_rank_reads_its_share_and_looks_at_all_sizes(folder: Path) -> None:
    flip(folder)
    assert faults_of(folder, share=lambda names: names[:1]) == []
    assert len(faults_of(folder, share=lambda names: names[1:])) == 1
    truncate(folder)
    assert faults_of(folder, share=lambda _names: ()) == ["state/rank must have 3 bytes, but has 2"]


def test_a_file_that_the_manifest_does_not_list_is_no_fault(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert faults_of(folder) == []


def test_a_manifest_without_files_is_whole(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(FORMAT, 0, 1, {}, {}))
    assert faults_of(tmp_path) == []
    assert read_manifest(tmp_path).files == dict[str, FileFact]()
