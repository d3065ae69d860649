"""A new file is new, is what was written, is on the disk, and has the mode that the umask asks for."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_sft.save import files
from ds_sft.save.files import FileFact, NewFile, fact_of, replace_file, settled, sync_folder, write_new_json

# The test vector of FIPS 180-2, appendix B.1.
ABC = FileFact(size=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Inode and size of everything that was brought to the disk, at that moment."""
    found: list[tuple[int, int]] = []

    def note(descriptor: int) -> None:
        state = os.fstat(descriptor)
        found.append((state.st_ino, state.st_size))

    monkeypatch.setattr(os, "fsync", note)
    return found


def write_abc(path: Path) -> FileFact:
    file = NewFile(path)
    file.write(b"a")
    file.write(memoryview(b"bc"))
    return file.finish()


def is_open(path: Path) -> bool:
    return str(path) in {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


def test_size_and_hash_are_those_of_all_that_was_written(tmp_path: Path) -> None:
    assert write_abc(tmp_path / "new") == ABC
    assert (tmp_path / "new").read_bytes() == b"abc"


def test_an_existing_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        NewFile(tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize("has_target", [True, False])
def test_a_link_is_refused_and_what_it_names_is_kept(tmp_path: Path, has_target: bool) -> None:
    target = tmp_path / "target"
    if has_target:
        target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(FileExistsError):
        NewFile(tmp_path / "link")
    assert [file.read_bytes() for file in tmp_path.glob("target")] == [b"old"] * has_target


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_the_one_that_the_umask_asks_for(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_abc(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask


def test_a_finished_file_is_on_the_disk_with_all_its_bytes(tmp_path: Path, synced: list[tuple[int, int]]) -> None:
    write_abc(tmp_path / "new")
    assert synced == [((tmp_path / "new").stat().st_ino, 3)]


def test_a_file_that_others_cut_is_not_finished(tmp_path: Path) -> None:
    file = NewFile(tmp_path / "new")
    file.write(b"a" * (1 << 22))  # more than is held back
    os.truncate(tmp_path / "new", 5)
    with pytest.raises(AssertionError, match="must have 4194304 bytes, but has 5"):
        file.finish()


def test_a_full_disk_is_told_and_the_file_can_be_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(os, "open", lambda *_: full)
    file = NewFile(tmp_path / "new")
    file.write(b"abc")
    with pytest.raises(OSError, match="No space left on device"):
        file.finish()
    file.abandon()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(full)


@pytest.mark.parametrize("tell", [fact_of, settled])
def test_a_file_is_told_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Callable[[Path], FileFact]
) -> None:
    monkeypatch.setattr(files, "_READ", 2)
    (tmp_path / "old").write_bytes(b"abc")
    assert tell(tmp_path / "old") == ABC


@pytest.mark.parametrize("tell", [fact_of, settled])
def test_a_link_is_not_told(tmp_path: Path, tell: Callable[[Path], FileFact]) -> None:
    (tmp_path / "target").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        tell(tmp_path / "link")


def test_a_settled_file_is_on_the_disk(tmp_path: Path, synced: list[tuple[int, int]]) -> None:
    (tmp_path / "old").write_bytes(b"abc")
    settled(tmp_path / "old")
    assert synced == [((tmp_path / "old").stat().st_ino, 3)]


def test_a_new_json_file_is_sorted_and_told(tmp_path: Path) -> None:
    fact = write_new_json(tmp_path / "new.json", {"b": [1, 0.5], "a": "空"})
    assert fact == fact_of(tmp_path / "new.json")
    assert (tmp_path / "new.json").read_text() == '{\n "a": "\\u7a7a",\n "b": [\n  1,\n  0.5\n ]\n}\n'


def test_a_new_json_file_replaces_none(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(FileExistsError):
        write_new_json(tmp_path / "old.json", {"a": 1})
    assert (tmp_path / "old.json").read_text() == "{}"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_has_no_word_for_is_refused_and_leaves_no_file(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_new_json(tmp_path / "new.json", {"a": [number]})
    assert list(tmp_path.iterdir()) == []


def test_a_json_file_that_cannot_come_to_the_disk_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_new_json(tmp_path / "new.json", {})
    assert not is_open(tmp_path / "new.json")


def test_the_names_in_a_folder_are_brought_to_the_disk(tmp_path: Path, synced: list[tuple[int, int]]) -> None:
    sync_folder(tmp_path)
    assert [inode for inode, _ in synced] == [tmp_path.stat().st_ino]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "old")


@pytest.mark.parametrize("name", ["report.html", ".report.html.part"])
@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_a_file_is_replaced_beside_a_planted_link_and_what_that_names_is_kept(
    name: str, plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"old")
    folder = tmp_path / "run"
    folder.mkdir()
    plant(folder / name, victim)
    replace_file(folder / "report.html", b"new")
    assert victim.read_bytes() == b"old"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"report.html": b"new"}
