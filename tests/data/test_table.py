"""A table file gives back what was written, and nothing at all once a single byte of it has changed."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ds_sft.data.table import Table, pack, ragged
from ds_sft.data.table_file import BrokenTableError, may_replace, remove_leftovers, write_table
from ds_sft.errors import DataError, SaveError

SCHEMA = pa.schema({"ids": pa.list_(pa.int32()), "number": pa.int64()})
ROWS = [([1, 2, 3], 10), ([], 11), ([4], 12), ([5, 6], 13)]
NOTE = {"parts": {"data": "é"}, "counters": {"records": 3}}


def batch(rows: list[tuple[list[int], int]]) -> bytes:
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)]).astype(np.int32)
    values = np.array([one for ids, _ in rows for one in ids], dtype=np.int32)
    return pack(SCHEMA, {"ids": ragged(offsets, values), "number": pa.array([number for _, number in rows])})


def write(file: Path, *batches: bytes) -> Path:
    write_table(file, schema=SCHEMA, batches=batches, note=lambda: NOTE)
    return file


def rows(table: Table) -> list[tuple[list[int], int]]:
    return [(table.row(index)["ids"].tolist(), int(table.row(index)["number"])) for index in range(len(table))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A table of two batches, with an empty one between them."""
    return write(tmp_path / "t.arrow", batch(ROWS[:3]), batch([]), batch(ROWS[3:]))


def test_rows_come_back_as_they_were_written(file: Path) -> None:
    assert rows(Table(file)) == ROWS
    assert Table(file).note == NOTE


def test_rows_may_be_counted_from_the_end(file: Path) -> None:
    assert Table(file).row(-1)["number"] == 13


@pytest.mark.parametrize("index", [4, -5])
def test_there_is_no_row_behind_the_last_one(file: Path, index: int) -> None:
    with pytest.raises(IndexError):
        Table(file).row(index)


def test_lengths_and_numbers_are_given_for_all_rows_at_once(file: Path) -> None:
    assert Table(file).lengths("ids").tolist() == [3, 0, 1, 2]
    assert Table(file).column("number").tolist() == [10, 11, 12, 13]


def test_a_table_without_rows_is_a_table(tmp_path: Path) -> None:
    table = Table(write(tmp_path / "t.arrow"))
    assert (len(table), table.lengths("ids").tolist(), table.column("number").tolist()) == (0, [], [])


def test_other_programs_can_read_the_file(file: Path) -> None:
    read = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    assert read.to_pylist() == [{"ids": ids, "number": number} for ids, number in ROWS]


def test_a_row_is_a_view_that_nobody_can_write_to(file: Path) -> None:
    ids = Table(file).row(0)["ids"]
    assert not ids.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 7


def test_every_changed_byte_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(BrokenTableError):
            Table(file)
    file.write_bytes(content)
    assert rows(Table(file)) == ROWS


def test_every_shorter_file_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(BrokenTableError):
            Table(file)


def test_a_longer_file_is_noticed(file: Path) -> None:
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(BrokenTableError):
        Table(file)


def test_the_fault_names_file_reason_and_remedy(file: Path) -> None:
    file.write_bytes(b"short")
    with pytest.raises(DataError) as caught:
        Table(file)
    assert str(caught.value) == f"{file}: must be as it was written, but it has 5 bytes only; delete it"


def test_a_file_that_is_not_there_is_no_broken_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Table(tmp_path / "none")


def test_a_pickled_table_holds_no_rows_but_finds_them(file: Path) -> None:
    sent = pickle.dumps(Table(file))
    assert len(sent) < 500
    assert rows(pickle.loads(sent)) == ROWS  # noqa: S301


def test_a_pickled_table_notices_that_its_file_is_another_one(file: Path) -> None:
    sent = pickle.dumps(Table(file))
    write_table(file, schema=SCHEMA, batches=[], note=lambda: {"parts": {}})
    with pytest.raises(BrokenTableError, match="another run has replaced it"):
        pickle.loads(sent)  # noqa: S301


def test_a_table_in_use_stays_when_its_file_is_replaced(file: Path) -> None:
    table = Table(file)
    write(file, batch([([9], 9)]))
    assert rows(table) == ROWS


def test_nothing_is_seen_before_the_last_batch_and_nothing_stays_of_a_failed_table(tmp_path: Path) -> None:
    file = tmp_path / "t.arrow"

    def batches() -> Iterator[bytes]:
        yield batch(ROWS)
        assert not file.exists()
        raise DataError("a fault on the way")

    with pytest.raises(DataError, match="a fault on the way"):
        write_table(file, schema=SCHEMA, batches=batches(), note=lambda: NOTE)
    assert list(tmp_path.iterdir()) == []


def test_the_old_table_stays_when_the_new_one_fails(file: Path) -> None:
    def note() -> dict[str, str]:
        raise DataError("a fault at the end")

    with pytest.raises(DataError, match="a fault at the end"):
        write_table(file, schema=SCHEMA, batches=[batch([])], note=note)
    assert rows(Table(file)) == ROWS


def test_a_killed_writer_leaves_only_what_the_next_one_removes(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom tests.data.test_table import *\n"
        "def batches():\n    yield batch(ROWS)\n    os.kill(os.getpid(), 9)\n"
        "write_table(Path(sys.argv[1]), schema=SCHEMA, batches=batches(), note=dict)\n"
    )
    file, other = tmp_path / "t.arrow", tmp_path / ".u.arrow.1.part"
    other.write_bytes(b"of another table")
    done = subprocess.run([sys.executable, "-c", program, file], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    (left,) = {one for one in tmp_path.iterdir() if one != other}
    assert left.name.startswith(".t.arrow.")
    remove_leftovers(file)
    assert list(tmp_path.iterdir()) == [other]


def test_a_folder_that_cannot_be_written_to_is_told_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "file" / "t.arrow"
    file.parent.write_text("not a folder")
    with pytest.raises(SaveError) as caught:
        write(file)
    assert caught.value.exit_code == 74
    assert str(caught.value) == (
        f"{file}: tokenised samples must be writable there, but: Not a directory; name another place with "
        "--preprocessed_path, or another folder in DS_SFT_CACHE"
    )


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    file = tmp_path / "t.arrow"
    (tmp_path / f".t.arrow.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(SaveError, match="No space left on device"):
        write(file, batch(ROWS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "is_free"),
    [(None, True), (b"", True), (json.dumps([1]).encode(), False), (b"\xff\xff\xff\xffsomething else", False)],
)
def test_only_our_own_files_may_be_replaced(tmp_path: Path, content: bytes | None, is_free: bool) -> None:
    file = tmp_path / "t.arrow"
    if content is not None:
        file.write_bytes(content)
    assert may_replace(file) is is_free


def test_a_damaged_table_may_be_replaced(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    assert may_replace(file)
