"""The checker of an output folder finds every kind of damage, and nothing in a folder that is as promised."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tree import checkpoints, disk_bytes, leftovers, violations

FILES = {"model.safetensors": b"weights", "state/rank-0.json": b"{}", "state/empty": b""}


def write_checkpoint(out: Path, step: int) -> Path:
    """Write a checkpoint as it is promised."""
    folder = out / f"checkpoint-{step}"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    facts = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()
    }
    manifest = {"format": 1, "step": step, "world_size": 2, "files": facts, "versions": {}}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with two whole checkpoints and other things that a run leaves."""
    for step in (2, 10):
        write_checkpoint(tmp_path / "out", step)
    (tmp_path / "out" / "trainer_state.json").write_text("{}")
    (tmp_path / "out" / ".staging-12-ab").mkdir()
    (tmp_path / "out" / ".staging-12-ab" / "half").write_bytes(b"123")
    (tmp_path / "out" / ".trash-1").mkdir()
    return tmp_path / "out"


def test_what_is_as_promised_has_no_fault(out: Path) -> None:
    assert violations(out) == []
    assert checkpoints(out) == [2, 10]
    assert leftovers(out) == [".staging-12-ab", ".trash-1"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert (violations(none), checkpoints(none), leftovers(none), disk_bytes(none)) == ([], [], [], 0)


def test_the_size_counts_every_file_once_and_follows_no_link(out: Path, tmp_path: Path) -> None:
    manifests = sum((out / f"checkpoint-{step}" / "MANIFEST.json").stat().st_size for step in (2, 10))
    (tmp_path / "large").write_bytes(bytes(1000))
    (out / "link").symlink_to(tmp_path / "large")
    (out / "folder").symlink_to(out / "checkpoint-2", target_is_directory=True)
    os.link(out / "trainer_state.json", out / "same")
    assert disk_bytes(out) == 2 * len(b"weights{}") + manifests + len(b"{}") + len(b"123")


def _flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[3] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def _move_out(folder: Path) -> None:
    (folder / "state").rename(folder.parent / "state")
    (folder / "state").symlink_to(folder.parent / "state", target_is_directory=True)


def _replace_by_link(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).rename(folder.parent / "moved")
        (folder / name).symlink_to(folder.parent / "moved")

    return damage


def _replace_by_file(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    folder.write_bytes(b"")


def _say(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "MANIFEST.json").read_text())
        change(content)
        (folder / "MANIFEST.json").write_text(json.dumps(content))

    return damage


NO_PATH = "is no path of a file in the folder"
DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "flipped bit": (_flip, ["model.safetensors has other bytes than MANIFEST.json says"]),
    "truncated": (
        lambda folder: os.truncate(folder / "model.safetensors", 6),
        ["model.safetensors must have 7 bytes, but has 6"],
    ),
    "longer": (lambda folder: (folder / "state/empty").write_bytes(b"a"), ["state/empty must have 0 bytes, but has 1"]),
    "extra": (lambda folder: (folder / "state/more").write_bytes(b""), ["state/more is not in MANIFEST.json"]),
    "second manifest": (
        lambda folder: (folder / "state/MANIFEST.json").write_bytes(b""),
        ["state/MANIFEST.json is not in MANIFEST.json"],
    ),
    "missing": (lambda folder: (folder / "state/empty").unlink(), ["state/empty is missing"]),
    "linked file": (_replace_by_link("model.safetensors"), ["model.safetensors is a symbolic link"]),
    "linked folder": (_move_out, ["state is a symbolic link"]),
    "extra link": (lambda folder: (folder / "a").symlink_to("model.safetensors"), ["a is a symbolic link"]),
    "pipe": (lambda folder: os.mkfifo(folder / "a"), ["a is not a plain file"]),
    "linked checkpoint": (_replace_by_link(""), ["is not a folder"]),
    "no folder": (_replace_by_file, ["is not a folder"]),
    "no manifest": (
        lambda folder: (folder / "MANIFEST.json").unlink(),
        ["MANIFEST.json is missing or not a plain file"],
    ),
    "linked manifest": (_replace_by_link("MANIFEST.json"), ["MANIFEST.json is missing or not a plain file"]),
    "torn manifest": (
        lambda folder: os.truncate(folder / "MANIFEST.json", 0),
        ["MANIFEST.json is not JSON: Expecting value: line 1 column 1 (char 0)"],
    ),
    "binary manifest": (
        lambda folder: (folder / "MANIFEST.json").write_bytes(b'"\xff"'),
        [
            "MANIFEST.json is not JSON: 'utf-8' codec can't decode byte 0xff in position 1: invalid start byte",
        ],
    ),
    "repeated name": (
        lambda folder: (folder / "MANIFEST.json").write_text('{"a": 1, "a": 2}'),
        ["MANIFEST.json is not JSON: a name is there twice among ['a', 'a']"],
    ),
    "list": (lambda folder: (folder / "MANIFEST.json").write_text("[]"), ["MANIFEST.json is not an object"]),
    "format": (
        _say(lambda content: content.update(format=2)),
        ["MANIFEST.json: format must be 1, but is 2"],
    ),
    "step": (_say(lambda content: content.update(step="2")), ["MANIFEST.json: step must be 2, but is '2'"]),
    "world size": (
        _say(lambda content: content.pop("world_size")),
        ["MANIFEST.json: world_size must be a positive number, but is None"],
    ),
    "files": (
        _say(lambda content: content.update(files=[])),
        ["MANIFEST.json: files must be an object, but is []"],
    ),
    "parent": (_say(lambda content: content["files"].update({"../a": {}})), [f"MANIFEST.json: '../a' {NO_PATH}"]),
    "absolute": (_say(lambda content: content["files"].update({"/a": {}})), [f"MANIFEST.json: '/a' {NO_PATH}"]),
    "odd path": (_say(lambda content: content["files"].update({"a//b": {}})), [f"MANIFEST.json: 'a//b' {NO_PATH}"]),
    "itself": (
        _say(lambda content: content["files"].update({"MANIFEST.json": {}})),
        [f"MANIFEST.json: 'MANIFEST.json' {NO_PATH}"],
    ),
    "no hash": (
        _say(lambda content: content["files"].update(a={"size": 1})),
        ["MANIFEST.json: a must have a size and a sha256, but has {'size': 1}"],
    ),
    "two faults": (
        lambda folder: subprocess.run(["rm", folder / "model.safetensors", folder / "state/empty"], check=True),
        ["model.safetensors is missing", "state/empty is missing"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_damage_is_found(damage: str, out: Path) -> None:
    harm, faults = DAMAGES[damage]
    harm(out / "checkpoint-2")
    assert violations(out) == [f"checkpoint-2: {fault}" for fault in faults]


@pytest.mark.parametrize("name", ["checkpoint-", "checkpoint-02", "checkpoint-2.part", "checkpoint-x"])
def test_a_name_that_is_nearly_a_checkpoints_is_a_fault(name: str, out: Path) -> None:
    (out / name).mkdir()
    assert violations(out) == [f"{name}: is no name for a checkpoint"]
    assert checkpoints(out) == [2, 10]


def test_the_checker_knows_nothing_of_the_product() -> None:
    source = (Path(__file__).parent / "tree.py").read_text(encoding="utf-8")
    assert "ds_sft" not in source
