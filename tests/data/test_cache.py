"""Samples are built once, whoever races or dies, and a file of others or a damaged one is never believed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from ds_sft.data import cache
from ds_sft.data.cache import cache_file, key_of, map_or_build
from ds_sft.data.table import Table, pack
from ds_sft.data.table_file import write_table
from ds_sft.errors import ConfigError, DataError, SaveError

ROOT = Path(__file__).parents[2]
SCHEMA = pa.schema({"number": pa.int64()})
PARTS = {"data": "d1", "tokenizer": "t1"}
OTHER_PARTS = {"data": "d2", "tokenizer": "t1"}
NUMBERS = list(range(5))


def build(file: Path, parts: dict[str, str] = PARTS, *, told: str = "built", seconds: float = 0.0) -> None:
    """Write a table of one batch for each number, and a word for each build."""

    def batches() -> Iterator[bytes]:
        for number in NUMBERS:
            time.sleep(seconds)
            yield pack(SCHEMA, {"number": pa.array([number])})

    with (file.parent / "builds").open("a") as builds:
        builds.write(f"{told}\n")
    write_table(file, schema=SCHEMA, batches=batches(), note=lambda: {"parts": parts})


def obtain(file: Path, parts: dict[str, str] = PARTS) -> Table:
    return map_or_build(file, parts=parts, build=lambda: build(file, parts))


def numbers(table: Table) -> list[int]:
    return [int(table.row(index)["number"]) for index in range(len(table))]


def builds(file: Path) -> list[str]:
    return (file.parent / "builds").read_text().split()


def run(program: str, file: Path, **environment: str) -> "subprocess.Popen[str]":
    """Run some lines beside this process; they find `file` and all names of this module."""
    head = "import os, sys, time\nfrom tests.data.test_cache import *\nfile = Path(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + program, file],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the samples are to be."""
    return tmp_path / "folder" / "samples.arrow"


def test_samples_are_built_once_and_mapped_afterwards(file: Path, told: pytest.LogCaptureFixture) -> None:
    assert [numbers(obtain(file)) for _ in range(3)] == [NUMBERS] * 3
    assert builds(file) == ["built"]
    assert told.messages == []


def test_samples_of_another_key_are_built_anew_and_both_keys_told(file: Path, told: pytest.LogCaptureFixture) -> None:
    obtain(file)
    obtain(file, OTHER_PARTS)
    assert builds(file) == ["built", "built"]
    (line,) = told.messages
    assert line == (
        f"{file}: was built under key {key_of(PARTS)}, but the key is {key_of(OTHER_PARTS)} now (changed: data): "
        "building it anew"
    )
    assert Table(file).note["parts"] == OTHER_PARTS


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_file_is_told_and_built_anew(file: Path, damage: str, told: pytest.LogCaptureFixture) -> None:
    obtain(file)
    whole = file.read_bytes()
    half = len(whole) // 2
    changed = whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :]
    file.write_bytes({"cut": whole[:half], "changed": changed, "emptied": b""}[damage])
    assert numbers(obtain(file)) == NUMBERS
    assert builds(file) == ["built", "built"]
    (line,) = told.messages
    assert line.startswith(f"{file}: it")
    assert line.endswith(": building it anew")


def test_a_file_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "essay.txt"
    file.write_text("mine")
    with pytest.raises(ConfigError) as caught:
        obtain(file)
    assert str(caught.value) == (
        f"preprocessed_path: must be a file of tokenised samples or a new one, but {file} is something else; name "
        "another file"
    )
    assert file.read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match="Not a directory; name another place with --preprocessed_path"):
        obtain(tmp_path / "file" / "folder" / "samples.arrow")


def test_a_fault_of_the_build_is_raised_and_the_next_one_can_build(file: Path) -> None:
    def refuse() -> None:
        raise DataError("train.json: must be good, but is not; mend it")

    with pytest.raises(DataError, match="must be good"):
        map_or_build(file, parts=PARTS, build=refuse)
    assert numbers(obtain(file)) == NUMBERS


def test_processes_that_race_build_once(file: Path) -> None:
    program = (
        "while not (file.parent / 'go').exists(): time.sleep(0.01)\n"
        "table = map_or_build(file, parts=PARTS, build=lambda: build(file, seconds=0.1))\n"
        "print(*numbers(table))\n"
    )
    file.parent.mkdir()
    racers = [run(program, file) for _ in range(3)]
    (file.parent / "go").write_text("")
    assert [racer.communicate(timeout=60)[0].split() for racer in racers] == [[str(one) for one in NUMBERS]] * 3
    assert builds(file) == ["built"]


@pytest.mark.parametrize("point", ["start", "batch", "sync", "rename", "done"])
def test_a_killed_builder_leaves_nothing_that_is_believed(file: Path, point: str) -> None:
    program = (
        "import ds_sft.data.table_file as written\n"
        "kill = lambda *_: os.kill(os.getpid(), 9)\n"
        "def killed_batches():\n    yield pack(SCHEMA, {'number': pa.array([7])})\n    kill()\n"
        "def killed():\n"
        f"    point = {point!r}\n"
        "    if point == 'start': kill()\n"
        "    if point == 'batch':\n"
        "        write_table(file, schema=SCHEMA, batches=killed_batches(), note=lambda: {'parts': PARTS})\n"
        "    if point == 'sync': written.os.fsync = kill\n"
        "    if point == 'rename': Path.replace = kill\n"
        "    build(file)\n"
        "    kill()\n"
        "map_or_build(file, parts=PARTS, build=killed)\n"
    )
    killed = run(program, file)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert file.exists() is (point == "done")
    assert numbers(obtain(file)) == NUMBERS
    assert [one.name for one in file.parent.iterdir() if one.name.endswith(".part")] == []


def test_other_ranks_of_a_host_leave_the_build_to_the_first_one(file: Path) -> None:
    program = (
        "rank = os.environ['LOCAL_RANK']\n"
        "(file.parent / f'started{rank}').write_text('')\n"
        "table = map_or_build(file, parts=PARTS, build=lambda: build(file, told=f'rank{rank}'))\n"
        "print(*numbers(table))\n"
    )
    file.parent.mkdir()
    second = run(program, file, LOCAL_RANK="1")
    while not (file.parent / "started1").exists():
        time.sleep(0.01)
    first = run(program, file, LOCAL_RANK="0")
    assert [rank.communicate(timeout=60)[0].split() for rank in (first, second)] == [[str(n) for n in NUMBERS]] * 2
    assert builds(file) == ["rank0"]


def test_other_ranks_build_when_the_first_one_never_comes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(cache, "_PATIENCE_SECONDS", 0.3)
    assert numbers(obtain(file)) == NUMBERS
    assert builds(file) == ["built"]


def test_other_ranks_wait_as_long_as_somebody_builds(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "map_or_build(file, parts=PARTS, build=lambda: build(file, told='slow', seconds=0.4))\n"
    slow = run(program, file)
    while not (file.parent / "builds").exists():
        time.sleep(0.01)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(cache, "_PATIENCE_SECONDS", 0.3)
    assert numbers(obtain(file)) == NUMBERS
    assert builds(file) == ["slow"]
    slow.communicate(timeout=60)


def test_the_key_follows_every_part() -> None:
    keys = {key_of(parts) for parts in (PARTS, OTHER_PARTS, {**PARTS, "tokenizer": "t2"}, {**PARTS, "more": ""})}
    assert len(keys) == 4
    assert key_of(dict(reversed(PARTS.items()))) == key_of(PARTS)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DS_SFT_CACHE": "~/mine"}, "mine/KEY.arrow"),
        ({"XDG_CACHE_HOME": "HOME/xdg"}, "xdg/ds_sft/KEY.arrow"),
        ({}, ".cache/ds_sft/KEY.arrow"),
    ],
)
def test_without_a_name_the_file_is_in_the_folder_of_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("DS_SFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("HOME", str(tmp_path)))
    assert cache_file(None, key="KEY", role="train") == tmp_path / expected


def test_a_named_file_is_that_of_training_and_the_evaluation_lies_beside(tmp_path: Path) -> None:
    named = str(tmp_path / "samples.json")
    assert cache_file(named, key="KEY", role="train") == tmp_path / "samples.json"
    assert cache_file(named, key="KEY", role="eval") == tmp_path / "samples-eval.json"


def test_a_named_folder_holds_files_under_their_keys(tmp_path: Path) -> None:
    assert cache_file(str(tmp_path), key="KEY", role="eval") == tmp_path / "KEY.arrow"
