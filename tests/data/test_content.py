"""The bytes of a data file: compressed or not, in this process or after pickling, or one error in words."""

import gzip
import os
import pickle
import shutil
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from ds_sft.data.content import Content
from ds_sft.errors import DataError, DsSftError, MissingInputError, PermissionRefusedError, SaveError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = "".join(f"line {number} 好\n" for number in range(50_000)).encode()
PACKED = {
    "gzip": gzip.compress(TEXT),
    "zstd": zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1}),
}


def write(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def bytes_of(content: Content) -> bytes:
    return bytes(content.part(0, len(content.mapped)))


def told(path: Path, kind: type[DsSftError]) -> str:
    """Give the message for a file that cannot be opened, without the folder."""
    with pytest.raises(kind) as caught:
        Content(path)
    assert type(caught.value) is kind
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("content", [TEXT, PACKED["gzip"], PACKED["zstd"]], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl.gz", "d.zst"])
def test_the_bytes_are_those_of_the_text_whatever_the_name(tmp_path: Path, content: bytes, name: str) -> None:
    assert bytes_of(Content(write(tmp_path / name, content))) == TEXT


@pytest.mark.parametrize("form", PACKED)
def test_several_compressed_parts_are_one_file(tmp_path: Path, form: str) -> None:
    assert bytes_of(Content(write(tmp_path / "d", PACKED[form] * 2))) == TEXT * 2


@pytest.mark.parametrize("packed", [b"", gzip.compress(b""), zstd.compress(b"")])
def test_an_empty_file_has_no_bytes(tmp_path: Path, packed: bytes) -> None:
    assert bytes_of(Content(write(tmp_path / "d", packed))) == b""


def test_the_unpacked_file_has_no_name_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    content = Content(write(tmp_path / "d.gz", PACKED["gzip"]))
    assert list((tmp_path / "unpacked").iterdir()) == []
    assert bytes_of(content) == TEXT


@pytest.mark.parametrize("packed", [TEXT, PACKED["gzip"], PACKED["zstd"]], ids=["plain", "gzip", "zstd"])
def test_a_pickled_file_is_small_and_gives_the_same_bytes(tmp_path: Path, packed: bytes) -> None:
    pickled = pickle.dumps(Content(write(tmp_path / "d", packed)))
    assert len(pickled) < 1000
    assert bytes_of(pickle.loads(pickled)) == TEXT  # noqa: S301 - our own bytes


def test_a_file_that_changed_since_it_was_pickled_is_refused(tmp_path: Path) -> None:
    pickled = pickle.dumps(Content(write(tmp_path / "d", TEXT)))
    write(tmp_path / "d", TEXT[:-1])
    again = pickle.loads(pickled)  # noqa: S301 - our own bytes
    with pytest.raises(DataError) as caught:
        bytes_of(again)
    assert str(caught.value) == (f"{tmp_path}/d: must stay as it is during a run, but has changed; start the run again")


def test_a_file_that_became_shorter_is_refused_instead_of_ending_the_process(tmp_path: Path) -> None:
    content = Content(write(tmp_path / "d", TEXT))
    os.truncate(tmp_path / "d", 10)
    assert bytes(content.part(0, 10)) == TEXT[:10]
    with pytest.raises(DataError, match="must stay as it is during a run, but has changed"):
        content.part(len(TEXT) - 10, len(TEXT))


def test_released_bytes_are_read_again(tmp_path: Path) -> None:
    content = Content(write(tmp_path / "d", TEXT))
    assert bytes_of(content) == TEXT
    content.release()
    assert bytes_of(content) == TEXT


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("num_cut", [1, 8, 1000])
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, form: str, num_cut: int) -> None:
    assert told(write(tmp_path / "d", PACKED[form][:-num_cut]), DataError) == (
        "d: must be a whole compressed file, but: Compressed file ended before the end-of-stream marker was reached; "
        "copy it again"
    )


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("place", [20, 1000, -3])
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, form: str, place: int) -> None:
    packed = bytearray(PACKED[form])
    packed[place] ^= 0xFF
    message = told(write(tmp_path / "d", bytes(packed)), DataError)
    assert message.startswith("d: must be a whole compressed file, but: ")
    assert message.endswith("; copy it again")


def test_bytes_after_a_compressed_file_are_refused(tmp_path: Path) -> None:
    assert told(write(tmp_path / "d", PACKED["gzip"] + b"more"), DataError) == (
        "d: must be a whole compressed file, but: Not a gzipped file (b'mo'); copy it again"
    )


@pytest.mark.parametrize("form", PACKED)
def test_a_file_that_would_fill_half_of_the_free_space_is_refused(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil's own
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * len(TEXT) - 2))
    assert told(write(tmp_path / "d", PACKED[form]), DataError) == (
        f"d: must unpack to at most {len(TEXT) - 1} bytes, half of the free space in {tempfile.gettempdir()}, "
        "but goes on; free some space or set TMPDIR to a larger disk"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * len(TEXT)))
    assert bytes_of(Content(tmp_path / "d")) == TEXT


def test_a_folder_for_temporary_files_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no"))
    assert told(write(tmp_path / "d", PACKED["gzip"]), SaveError) == (
        "TMPDIR: must have room for the unpacked data file, but: No such file or directory; set it to a larger disk"
    )


def test_a_missing_file_is_told_with_its_path(tmp_path: Path) -> None:
    assert told(tmp_path / "no", MissingInputError) == "data_path: file must exist, but no does not; check the path"
    write(tmp_path / "d", b"x")
    assert told(tmp_path / "d" / "no", MissingInputError) == (
        "data_path: file must exist, but no does not; check the path"
    )


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert told(tmp_path / "d", DataError) == ("data_path: must be a file, but d is a folder; name the JSON file in it")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d")
    assert told(tmp_path / "d", DataError) == (
        "data_path: must be a file, but d is a pipe or device; write its content to a file"
    )


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    (tmp_path / "d").touch()
    assert told(tmp_path / "d", PermissionRefusedError) == ("data_path: must be readable, but d is not; check its mode")


def test_a_path_that_the_system_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "d").symlink_to(tmp_path / "d")
    assert told(tmp_path / "d", DataError) == (
        "data_path: must be readable, but d is not: Too many levels of symbolic links; check the path"
    )
