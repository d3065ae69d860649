"""A checkpoint is whole or not there, on every rank and every disk, and old ones leave only for a whole new one."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_sft.errors import NumericsError, SaveError
from ds_sft.save import staging
from ds_sft.save.files import FileFact, fact_of
from ds_sft.save.manifest import MANIFEST, faults_of, read_manifest
from ds_sft.save.staging import Disk, checkpoints_of, clear, newest_whole, publish, retain, verify
from tests.ranks import run_ranks
from tests.state_jobs import (
    Hosts,
    Told,
    publish_on_two_hosts,
    publish_together,
    publish_with_a_failure,
    retain_with_a_failure,
    verify_together,
    write_one,
)

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights")
FAILURES: dict[str, tuple[BaseException, type[BaseException], str]] = {
    "disk": (FULL, SaveError, "weights: No space left on device"),
    "disk without a name": (OSError(errno.EIO, "Input/output error"), SaveError, "output_dir: Input/output error"),
    "save": (SaveError("export: no room"), SaveError, "export: no room"),
    "numbers": (NumericsError("lm_head: must be finite"), NumericsError, "lm_head: must be finite"),
    "bug": (RuntimeError("a bug"), RuntimeError, "a bug"),
    "assertion": (AssertionError("a bug"), AssertionError, "a bug"),
    "value": (ValueError("NaN"), ValueError, "NaN"),
    "Ctrl-C": (KeyboardInterrupt("^C"), KeyboardInterrupt, r"\^C"),
}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Of a single process."""
    return Disk.find(tmp_path / "run")


def save(disk: Disk, step: int, *, is_resumable: bool = True) -> Path:
    return publish(disk, step=step, facts={"resumable": is_resumable}, write=write_one)


def damage(checkpoint: Path) -> None:
    (checkpoint / "rank-0").write_bytes(b"rank-1")


def cut(checkpoint: Path) -> None:
    (checkpoint / "rank-0").write_bytes(b"rank")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_single_process_has_a_disk_of_its_own_and_leaves_no_trace(tmp_path: Path) -> None:
    disk = Disk.find(tmp_path / "a" / "b")
    assert (disk.folder, disk.members, disk.rank, disk.is_leader) == (tmp_path / "a" / "b", (0,), 0, True)
    assert names(tmp_path / "a" / "b") == []


def test_a_probe_that_a_killed_run_has_left_is_no_rank(tmp_path: Path) -> None:
    # In a container, every run may have the same process number.
    (tmp_path / f".probe-{os.getpid()}-3").touch()
    assert Disk.find(tmp_path).members == (0,)


def test_the_ranks_of_a_disk_share_the_work(tmp_path: Path) -> None:
    shares = [Disk(tmp_path, (1, 4), rank).share_of(["a", "b", "c"]) for rank in (1, 4)]
    assert shares == [["a", "c"], ["b"]]


def test_a_published_checkpoint_is_whole_and_alone(disk: Disk) -> None:
    folder = publish(disk, step=3, facts={"seed": 7}, write=write_one)
    assert folder == disk.folder / "checkpoint-3"
    assert faults_of(folder) == []
    assert names(disk.folder) == ["checkpoint-3"]
    manifest = read_manifest(folder)
    assert (manifest.step, manifest.world_size, manifest.facts) == (3, 1, {"seed": 7})
    assert manifest.files == {"rank-0": fact_of(folder / "rank-0")}


def test_nothing_has_the_name_of_a_checkpoint_while_it_is_written(disk: Disk) -> None:
    seen: list[list[str]] = []

    def write(into: Path) -> dict[str, FileFact]:
        seen.append(names(disk.folder))
        return write_one(into)

    publish(disk, step=3, facts={}, write=write)
    assert seen == [[".staging-3"]]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_write_that_fails_publishes_nothing_and_leaves_nothing(disk: Disk, failure: str) -> None:
    error, kind, line = FAILURES[failure]

    def write(into: Path) -> dict[str, FileFact]:
        write_one(into)
        raise error

    save(disk, 2)
    with pytest.raises(kind, match=f"^{line}$"):
        publish(disk, step=3, facts={}, write=write)
    assert names(disk.folder) == ["checkpoint-2"]


@pytest.mark.parametrize("operation", ["write_manifest", "sync_folder"])
def test_a_publication_that_fails_keeps_the_checkpoint_of_that_name(
    disk: Disk, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise FULL

    folder = save(disk, 3)
    monkeypatch.setattr(staging, operation, fail)
    with pytest.raises(SaveError, match="No space left on device"):
        save(disk, 3)
    assert faults_of(folder) == []


def test_a_save_after_one_that_failed_succeeds(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(staging, "write_manifest", fail)
        with pytest.raises(SaveError):
            save(disk, 3)
    assert faults_of(save(disk, 3)) == []


def test_a_checkpoint_of_the_same_name_is_replaced_and_gone(disk: Disk) -> None:
    (save(disk, 3) / "old").touch()
    assert names(save(disk, 3)) == [MANIFEST, "rank-0"]
    assert names(disk.folder) == ["checkpoint-3"]


@pytest.mark.parametrize("name", ["checkpoint-3", ".trash-checkpoint-3"])
def test_a_link_at_the_name_of_a_checkpoint_is_not_followed(disk: Disk, tmp_path: Path, name: str) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").touch()
    (disk.folder / name).symlink_to(tmp_path / "foreign")
    if name != "checkpoint-3":
        (disk.folder / "checkpoint-3").mkdir()
    assert faults_of(save(disk, 3)) == []
    assert names(tmp_path / "foreign") == ["file"]


def test_a_link_at_the_name_of_the_staging_folder_is_not_followed(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (disk.folder / ".staging-3").symlink_to(tmp_path / "foreign")
    with pytest.raises(SaveError, match="File exists"):
        save(disk, 3)
    assert names(tmp_path / "foreign") == []


@pytest.mark.parametrize(
    ("newest", "best", "kept"),
    [
        (None, None, [1, 2, 3, 10]),
        (4, None, [1, 2, 3, 10]),
        (2, None, [3, 10]),
        (1, None, [10]),
        (2, 1, [1, 3, 10]),
        (2, 10, [3, 10]),
        (1, 2, [2, 10]),
    ],
)
def test_the_newest_ones_and_the_best_stay(disk: Disk, newest: int | None, best: int | None, kept: list[int]) -> None:
    for step in (1, 2, 3, 10):
        save(disk, step)
    retain(disk, step=10, newest=newest, best=None if best is None else Path(f"elsewhere/checkpoint-{best}"))
    assert sorted(names(disk.folder)) == sorted(f"checkpoint-{step}" for step in kept)


@pytest.mark.parametrize("newest", [0, -1])
def test_a_limit_below_one_removes_no_newest_checkpoint(disk: Disk, newest: int) -> None:
    for step in (1, 2):
        save(disk, step)
    retain(disk, step=2, newest=newest, best=None)
    assert newest_whole(disk) == disk.folder / "checkpoint-2"


@pytest.mark.parametrize("harm", [cut, lambda folder: (folder / MANIFEST).unlink()])
def test_nothing_is_removed_for_a_new_checkpoint_that_is_not_whole(disk: Disk, harm: Callable[[Path], None]) -> None:
    for step in (1, 2, 3):
        harm(save(disk, step)) if step == 3 else save(disk, step)
    retain(disk, step=3, newest=1, best=None)
    assert names(disk.folder) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_checkpoints_above_the_newest_step_are_neither_counted_nor_removed(disk: Disk) -> None:
    for step in (1, 2, 3, 90, 100):
        save(disk, step)
    retain(disk, step=3, newest=2, best=None)
    assert names(disk.folder) == ["checkpoint-100", "checkpoint-2", "checkpoint-3", "checkpoint-90"]


def test_only_checkpoints_are_removed_and_no_link_is_followed(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").touch()
    (disk.folder / "checkpoint-1").symlink_to(tmp_path / "foreign")
    for name in ("checkpoint-1-mine", "checkpoint-", "checkpoint--1", "checkpoint-1.5", "notes"):
        (disk.folder / name).mkdir()
    save(disk, 3)
    retain(disk, step=3, newest=1, best=None)
    assert names(disk.folder) == sorted(
        ["checkpoint-3", "checkpoint-1-mine", "checkpoint-", "checkpoint--1", "checkpoint-1.5", "notes"]
    )
    assert names(tmp_path / "foreign") == ["file"]


def test_checkpoints_come_newest_first_by_number(disk: Disk) -> None:
    for step in (9, 10, 100):
        save(disk, step)
    assert [step for step, _ in checkpoints_of(disk.folder)] == [100, 10, 9]
    assert checkpoints_of(disk.folder / "missing") == []


def test_what_an_interrupted_run_has_left_is_removed_with_a_line_each(
    disk: Disk, told: pytest.LogCaptureFixture
) -> None:
    left = [".staging-3", ".trash-checkpoint-1", ".writing-abc"]
    for name in left:
        (disk.folder / name / "state").mkdir(parents=True)
        (disk.folder / name / "state" / "rank-0").touch()
    for name in (".probe-77-0", ".README.md.part"):
        (disk.folder / name).touch()
    clear(disk)
    assert names(disk.folder) == []
    assert sorted(told.messages) == sorted(
        f"removing {disk.folder / name}, which an interrupted run has left"
        for name in [*left, ".probe-77-0", ".README.md.part"]
    )


def test_files_of_the_user_and_checkpoints_stay(disk: Disk) -> None:
    save(disk, 3)
    mine = ["staging-3", "trash-1", "x.staging-3", ".hidden", "notes.part", "probe-1", "checkpoint-4"]
    for name in mine:
        (disk.folder / name).mkdir()
    clear(disk)
    assert names(disk.folder) == sorted(["checkpoint-3", *mine])


@pytest.mark.parametrize("name", [".staging-3", ".trash-checkpoint-1", ".staging-3/inner"])
def test_a_link_is_removed_but_not_what_it_names(disk: Disk, tmp_path: Path, name: str) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").touch()
    link = disk.folder / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "foreign")
    clear(disk)
    assert names(disk.folder) == []
    assert names(tmp_path / "foreign") == ["file"]


def test_a_rank_that_does_not_publish_removes_nothing(tmp_path: Path) -> None:
    for name in (".staging-3", "checkpoint-1"):
        (tmp_path / name).mkdir()
    clear(Disk(tmp_path, (0, 1), 1))
    assert names(tmp_path) == [".staging-3", "checkpoint-1"]


def test_without_a_checkpoint_there_is_none(disk: Disk, told: pytest.LogCaptureFixture) -> None:
    assert newest_whole(disk) is None
    assert told.messages == []


def test_the_newest_whole_checkpoint_is_the_one_with_the_highest_number(disk: Disk) -> None:
    for step in (10, 9):
        save(disk, step)
    assert newest_whole(disk) == disk.folder / "checkpoint-10"


def test_a_damaged_checkpoint_is_skipped_with_one_line_that_names_the_reason(
    disk: Disk, told: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3, 4):
        save(disk, step)
    (disk.folder / "checkpoint-99999999999").mkdir()
    damage(disk.folder / "checkpoint-4")
    cut(disk.folder / "checkpoint-3")
    assert newest_whole(disk) == disk.folder / "checkpoint-2"
    assert told.messages == [
        f"{disk.folder}/checkpoint-99999999999 is skipped: MANIFEST.json is missing",
        f"{disk.folder}/checkpoint-4 is skipped: rank-0 is not what was written (its hash differs)",
        f"{disk.folder}/checkpoint-3 is skipped: rank-0 must have 6 bytes, but has 4",
    ]
    assert {record.levelname for record in told.records} == {"WARNING"}


def test_a_link_to_a_whole_checkpoint_is_skipped(disk: Disk, told: pytest.LogCaptureFixture) -> None:
    (disk.folder / "checkpoint-9").symlink_to(save(disk, 3))
    assert newest_whole(disk) == disk.folder / "checkpoint-3"
    assert told.messages == [f"{disk.folder}/checkpoint-9 is skipped: it is no folder"]


def test_a_checkpoint_of_the_model_alone_is_skipped(disk: Disk, told: pytest.LogCaptureFixture) -> None:
    save(disk, 3)
    save(disk, 4, is_resumable=False)
    assert newest_whole(disk) == disk.folder / "checkpoint-3"
    assert told.messages == [f"{disk.folder}/checkpoint-4 is skipped: it holds the model only"]


def test_a_whole_checkpoint_verifies(disk: Disk) -> None:
    folder = save(disk, 3)
    assert verify(disk, folder) == []
    damage(folder)
    assert verify(disk, folder) == ["rank-0 is not what was written (its hash differs)"]


def test_two_ranks_publish_one_checkpoint_with_the_files_of_both(tmp_path: Path) -> None:
    found = run_ranks(publish_together, tmp_path, world_size=2)
    assert found == [(Disk(tmp_path, (0, 1), rank), tmp_path / "checkpoint-3") for rank in (0, 1)]
    assert names(tmp_path) == ["checkpoint-3"]
    assert faults_of(tmp_path / "checkpoint-3") == []
    manifest = read_manifest(tmp_path / "checkpoint-3")
    assert (manifest.step, manifest.world_size, sorted(manifest.files)) == (3, 2, ["rank-0", "rank-1"])


@pytest.mark.parametrize(
    ("failing", "failure", "told"),
    [
        (1, "disk", Told("SaveError", 74, "rank 1: state/rank-1: No space left on device")),
        (1, "numbers", Told("NumericsError", 65, "rank 1: lm_head.weight: must be finite numbers")),
        (0, "numbers", Told("NumericsError", 65, "lm_head.weight: must be finite numbers")),
    ],
)
def test_a_failure_of_one_rank_reaches_all_and_nothing_is_published(
    tmp_path: Path, failing: int, failure: str, told: Told
) -> None:
    assert run_ranks(publish_with_a_failure, tmp_path, failing, failure, world_size=2) == [told, told]
    assert names(tmp_path) == []


def test_an_old_checkpoint_that_cannot_be_removed_is_the_same_to_all_ranks(tmp_path: Path) -> None:
    found = run_ranks(retain_with_a_failure, tmp_path, world_size=2)
    assert found[0] == found[1]
    assert faults_of(tmp_path / "checkpoint-2") == []


@pytest.mark.parametrize("name", ["rank-0", "rank-1"])
def test_a_fault_that_one_rank_finds_is_known_to_all(tmp_path: Path, name: str) -> None:
    disk = Disk.find(tmp_path)
    for step in (2, 3):
        folder = publish(disk, step=step, facts={}, write=_two_files)
    (folder / name).write_bytes(b"rank-9")
    fault = f"{name} is not what was written (its hash differs)"
    assert run_ranks(verify_together, tmp_path, world_size=2) == [([fault], "checkpoint-2")] * 2


def _two_files(into: Path) -> dict[str, FileFact]:
    for name in ("rank-0", "rank-1"):
        (into / name).write_bytes(name.encode())
    return {name: fact_of(into / name) for name in ("rank-0", "rank-1")}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Hosts]]:
    """Two hosts with disks of their own, and what their ranks saw."""
    folder = tmp_path_factory.mktemp("hosts")
    return folder, run_ranks(publish_on_two_hosts, folder, world_size=2)


def test_hosts_with_disks_of_their_own_are_found(hosts: tuple[Path, list[Hosts]]) -> None:
    assert [host.members for host in hosts[1]] == [(0,), (1,)]


def test_each_disk_gets_a_whole_checkpoint_with_the_files_of_its_own_ranks(hosts: tuple[Path, list[Hosts]]) -> None:
    for number in (0, 1):
        folder = hosts[0] / f"host-{number}" / "run" / "checkpoint-2"
        assert faults_of(folder) == []
        assert sorted(read_manifest(folder).files) == [f"rank-{number}"]
        assert read_manifest(folder).world_size == 2
    assert {host.published for host in hosts[1]} == {"run/checkpoint-3"}


def test_the_newest_checkpoint_is_the_one_that_is_whole_on_every_disk(hosts: tuple[Path, list[Hosts]]) -> None:
    whole, damaged = [None, "checkpoint-1", "checkpoint-2", "checkpoint-3"], "checkpoint-2"
    assert [host.newest[:5] for host in hosts[1]] == [[*whole, damaged]] * 2


def test_a_fault_on_one_disk_is_known_on_all(hosts: tuple[Path, list[Hosts]]) -> None:
    assert [host.faults for host in hosts[1]] == [["rank-1 is not what was written (its hash differs)"]] * 2


def test_a_checkpoint_that_one_disk_could_not_publish_is_told_and_never_taken(hosts: tuple[Path, list[Hosts]]) -> None:
    told = Told("SaveError", 74, "rank 1: run/.staging-4/MANIFEST.json: Input/output error")
    assert [host.told for host in hosts[1]] == [told, told]
    assert [host.newest[5] for host in hosts[1]] == ["checkpoint-2"] * 2
    assert names(hosts[0] / "host-1" / "run") == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
