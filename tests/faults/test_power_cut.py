"""Synthesised power cuts lose what may be lost, keep what was synced, and are the same for the same seed."""

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.power_cut import trees
from tests.faults.shim import Operation, read_log
from tests.faults.test_shim import victim

SAVED = {"a": b"abcdefgh", "b": b"12345678"}

SAVE = """
def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

os.mkdir("out/.staging")
for name, content in (("a", b"abcdefgh"), ("b", b"12345678")):
    path = f"out/.staging/{name}"
    Path(path).write_bytes(content)
    sync(path)
sync("out/.staging")
os.rename("out/.staging", "out/done")
sync("out")
"""


def log_of(*steps: str) -> list[Operation]:
    """Give a log: lines as `write a 0 4` or `rename a b`, of which all succeed, below /out."""
    found = []
    for time, step in enumerate(steps):
        name, path, *rest = step.split()
        other = f"/out/{rest[0]}" if name in {"rename", "link"} else ""
        offset, size = map(int, rest) if name in {"write", "truncate"} else (0, 0)
        here = "/out" if path == "." else f"/out/{path}"
        result = size if name == "write" else 0
        found.append(Operation(time, 1, name, result, offset, size, here, other))
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    """Give all files with their bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cuts(log: list[Operation], tmp_path: Path, final: dict[str, bytes]) -> list[dict[str, bytes]]:
    """Give what cuts after the whole log leave."""
    finished = tmp_path / "finished"
    finished.mkdir()
    for name, content in final.items():
        (finished / name).write_bytes(content)
    given = trees(log, root=Path("/out"), finished=finished, into=tmp_path / "cuts", seed=1, count=80, first=len(log))
    return [files_of(cut.folder) for cut in given]


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        (["create a"], {"", "a"}),
        (["create a", "fsync ."], {"a"}),
        (["create a", "fsync a"], {"", "a"}),
        (["create a", "create b"], {"", "a", "b", "a b"}),
        (["create a", "fsync .", "create b"], {"a", "a b"}),
        (["create a", "fsync .", "unlink a"], {"a", ""}),
        (["create a", "fsync .", "unlink a", "fsync ."], {""}),
        (["create a", "fsync .", "rename a b"], {"a", "b"}),
        (["create a", "rename a b"], {"", "a", "b"}),
        (["create a", "create b", "fsync .", "rename a b"], {"a b", "b"}),
        (["create a", "fsync .", "link a b"], {"a", "a b"}),
        (["mkdir d", "create d/a", "fsync d"], {"", "d/a"}),
        (["mkdir d", "create d/a", "fsync ."], {"", "d/a"}),
        (["mkdir d", "create d/a", "fsync .", "fsync d", "rename d e", "unlink e/a"], {"d/a", "", "e/a"}),
        (["mkdir d", "fsync .", "create a", "rename a d/b", "fsync d"], {"d/b"}),
        (["unlink a", "create a", "fsync ."], {"a"}),
    ],
)
def test_names_may_be_lost_until_their_folder_is_synced(steps: list[str], left: set[str], tmp_path: Path) -> None:
    assert {" ".join(sorted(tree)) for tree in cuts(log_of(*steps), tmp_path, {})} == left


def test_bytes_may_be_lost_until_the_file_is_synced(tmp_path: Path) -> None:
    log = log_of("create a", "fsync .", "write a 0 2", "fsync a", "write a 2 2", "write a 4 1")
    found = {tree["a"] for tree in cuts(log, tmp_path, {"a": b"12345"})}
    assert found == {b"12", b"123", b"1234", b"12345", b"12\0\0\0", b"123\0\0", b"1234\0"}


def test_a_truncation_may_be_lost_too(tmp_path: Path) -> None:
    log = log_of("create a", "fsync .", "write a 0 4", "fsync a", "truncate a 0 2")
    assert {tree["a"] for tree in cuts(log, tmp_path, {"a": b"12"})} == {b"12", b"12\0\0"}


def test_what_failed_or_lies_elsewhere_changes_nothing(tmp_path: Path) -> None:
    failed = Operation(0, 1, "mkdir", -28, 0, 0, "/out/a", "")
    outside = Operation(1, 1, "rename", 0, 0, 0, "/other/a", "/other/b")
    log = [failed, outside, *log_of("unlink none", "write none 0 3", "fsync none")]
    assert cuts(log, tmp_path, {}) == [{}] * 80


def test_what_was_there_before_is_on_the_disk(tmp_path: Path) -> None:
    before = tmp_path / "before"
    (before / "old").mkdir(parents=True)
    (before / "old" / "a").write_bytes(b"123")
    log = log_of("rename old .trash", "fsync .", "unlink .trash/a", "rmdir .trash", "fsync .")
    given = trees(log, root=Path("/out"), finished=tmp_path, into=tmp_path / "cuts", seed=1, count=60, before=before)
    found = Counter((cut.after, *map(str, files_of(cut.folder).items()), *cut.promised) for cut in given)
    old, trash = "('old/a', b'123')", "('.trash/a', b'123')"
    assert set(found) == {
        (0, old, "old"),
        *((1, held) for held in (old, trash)),
        (2, trash, ".trash"),
        *((3, *held, ".trash") for held in ([trash], [])),
        *((4, *held) for held in ([trash], [])),
        (5,),
    }


def test_a_save_that_syncs_in_order_is_whole_wherever_it_is_cut(crashfs: Path, tmp_path: Path) -> None:
    victim(crashfs, tmp_path, SAVE)
    log = read_log(tmp_path / "log")
    out, promised = tmp_path / "out", 0
    for cut in trees(log, root=out, finished=out, into=tmp_path / "cuts", seed=3, count=300):
        assert not (cut.folder / "done").exists() or files_of(cut.folder / "done") == SAVED
        assert (cut.folder / "done").exists() or "done" not in cut.promised
        promised += "done" in cut.promised
    assert 0 < promised < 300
    assert not any((tmp_path / "cuts").iterdir())


@pytest.mark.parametrize("line", ["    sync(path)\n", 'sync("out/.staging")\n'])
def test_a_save_that_does_not_sync_is_found_torn(line: str, crashfs: Path, tmp_path: Path) -> None:
    assert line in SAVE
    victim(crashfs, tmp_path, SAVE.replace(line, ""))
    log, out = read_log(tmp_path / "log"), tmp_path / "out"
    given = trees(log, root=out, finished=out, into=tmp_path / "cuts", seed=3, count=300)
    torn = [cut.after for cut in given if (cut.folder / "done").exists() and files_of(cut.folder / "done") != SAVED]
    assert len(torn) > 5


def test_the_same_seed_gives_the_same_trees(tmp_path: Path) -> None:
    log = log_of("create a", "write a 0 5", "create b", "rename b c", "mkdir d", "create d/e")
    (tmp_path / "a").write_bytes(b"12345")

    def drawn(seed: int) -> list[dict[str, bytes]]:
        given = trees(log, root=Path("/out"), finished=tmp_path, into=tmp_path / "cuts", seed=seed, count=50)
        return [files_of(cut.folder) for cut in given]

    assert drawn(1) == drawn(1) != drawn(2)
