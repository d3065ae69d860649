"""An output folder has one job; the second one is told who that is, and a dead one holds nothing."""

import errno
import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ds_sft.errors import LaunchError
from ds_sft.save import lock
from ds_sft.save.lock import output_lock

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 20
REFUSAL = "output_dir: must be used by one job at a time, but {} is used by {}; {}"
REMEDY = "wait for it, stop it, or name another folder"

JOB = """
import errno, fcntl, os, sys, time
from pathlib import Path
from ds_sft.errors import LaunchError
from ds_sft.save.lock import output_lock

def no_locks(*_):
    raise OSError(errno.ENOLCK, "no locks")

def wait_for(file):
    while not file.exists():
        time.sleep(0.001)

assert "torch" not in sys.modules
base = Path(sys.argv[1])
{body}
print("here", flush=True)
for number in range(int(sys.argv[2])):
    wait_for(base / f"start-{{number}}")
    try:
        with output_lock(base / f"out-{{number}}"):
            print("held", flush=True)
            {held}
            wait_for(base / f"end-{{number}}")
    except LaunchError as error:
        print(error, flush=True)
"""
FORKING = "worker = os.fork(); worker or time.sleep(60); print(worker, flush=True)"
STARTING = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"


@contextmanager
def job(base: Path, *, rounds: int = 1, body: str = "pass", held: str = "pass") -> "Iterator[subprocess.Popen[str]]":
    """Start a job that takes the lock of `out-N` once `start-N` exists, and holds it until `end-N` does."""
    command = [sys.executable, "-c", JOB.format(body=body, held=held), str(base), str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert line(process) == "here"
            yield process
        finally:
            process.kill()


@contextmanager
def holder_of(folder: Path, held: str = "pass") -> "Iterator[subprocess.Popen[str]]":
    """Start a job that holds the lock of a folder named `out-0`."""
    folder.with_name("start-0").touch()
    with job(folder.parent, held=held) as process:
        assert line(process) == "held"
        yield process


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder."""
    return tmp_path / "out-0"


def refuse_two_jobs(folder: Path, match: str = "used by") -> LaunchError:
    """Be the second job."""
    with pytest.raises(LaunchError, match=match) as caught, output_lock(folder):
        raise AssertionError("two jobs")
    return caught.value


@pytest.mark.parametrize(
    ("body", "age_seconds"),
    [
        ("pass", None),
        ("fcntl.flock = no_locks", 1000),
        pytest.param("fcntl.flock = no_locks", None, marks=pytest.mark.slow),
    ],
    ids=["locks", "no locks, after a dead job", "no locks"],
)
def test_of_two_jobs_that_start_at_once_exactly_one_runs(body: str, age_seconds: int | None, tmp_path: Path) -> None:
    with job(tmp_path, rounds=ROUNDS, body=body) as first, job(tmp_path, rounds=ROUNDS, body=body) as second:
        for number in range(ROUNDS):
            folder = tmp_path / f"out-{number}"
            if age_seconds:
                folder.mkdir()
                (folder / ".ds_sft.claim").touch()
                os.utime(folder / ".ds_sft.claim", (time.time() - age_seconds,) * 2)
            (tmp_path / f"start-{number}").touch()
            held, refused = sorted((line(first), line(second)))
            assert held == "held"
            assert refused.startswith(f"output_dir: must be used by one job at a time, but {folder} is used by ")
            (tmp_path / f"end-{number}").touch()


def test_a_second_job_is_refused_within_a_second_and_told_who_is_there(out: Path) -> None:
    with holder_of(out) as holder:
        began = time.monotonic()
        (line,) = refuse_two_jobs(out).faults
        assert time.monotonic() - began < 1
    time_of_day = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
    who = f"process {holder.pid} on host {re.escape(socket.gethostname())} since {time_of_day}"
    assert re.fullmatch(REFUSAL.format(re.escape(str(out)), who, REMEDY), line)


def test_a_killed_job_holds_nothing(out: Path) -> None:
    with holder_of(out) as holder:
        holder.kill()
        holder.wait()
        with output_lock(out):
            assert json.loads((out / ".ds_sft.lock.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("held", [FORKING, STARTING], ids=["forked", "started"])
def test_a_child_that_outlives_its_job_holds_nothing(held: str, out: Path) -> None:
    with holder_of(out, held=held) as holder:
        child = int(line(holder))
        holder.kill()
        holder.wait()
        os.kill(child, 0)
        with output_lock(out):
            os.kill(child, signal.SIGKILL)


def test_a_job_that_ends_leaves_no_facts_and_the_next_one_may_come(tmp_path: Path) -> None:
    for _ in range(2):
        with output_lock(tmp_path / "new" / "out"):
            pass
    assert [file.name for file in (tmp_path / "new" / "out").iterdir()] == [".ds_sft.lock"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "1", "host": "h", "started": "t"}'])
def test_facts_that_cannot_be_read_are_no_reason_to_share(content: str, out: Path) -> None:
    with holder_of(out):
        (out / ".ds_sft.lock.json").write_text(content)
        assert refuse_two_jobs(out).faults == (REFUSAL.format(out, "another process", REMEDY),)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".ds_sft.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"), output_lock(tmp_path):
        raise AssertionError("followed")
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A file system that knows no locks."""

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


every_way = pytest.mark.parametrize(
    "without_locks", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], indirect=True, ids=errno.errorcode.get
)
one_way = pytest.mark.parametrize("without_locks", [errno.ENOLCK], indirect=True)


@every_way
@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_file_stands_for_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with output_lock(tmp_path):
        assert len(caplog.records) == 1
        assert "is on a file system without locks" in caplog.text
        refuse_two_jobs(tmp_path, match=f"is used by process {os.getpid()} on .*; wait for it, or 120 s after it died")
    with output_lock(tmp_path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [".ds_sft.lock"]


@one_way
@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(("age_seconds", "is_free"), [(110, False), (130, True)])
def test_without_locks_a_file_is_believed_for_120_seconds(age_seconds: int, is_free: bool, tmp_path: Path) -> None:
    claim = tmp_path / ".ds_sft.claim"
    claim.touch()
    os.utime(claim, (time.time() - age_seconds,) * 2)
    if is_free:
        with output_lock(tmp_path):
            assert time.time() - claim.stat().st_mtime < 5
    else:
        refuse_two_jobs(tmp_path, match="used by another process")
    assert [file.name for file in tmp_path.glob(".ds_sft.claim*")] == ([] if is_free else [".ds_sft.claim"])


@one_way
@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_file_is_touched_while_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.01)
    claim = tmp_path / ".ds_sft.claim"
    with output_lock(tmp_path):
        os.utime(claim, (0, 0))
        time.sleep(0.1)
        assert time.time() - claim.stat().st_mtime < 5


@one_way
@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_claim_of_another_job_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.01)
    claim, another = tmp_path / ".ds_sft.claim", tmp_path / "another"
    another.touch()
    os.utime(another, (0, 0))
    with output_lock(tmp_path):
        another.replace(claim)
        time.sleep(0.1)
    assert claim.stat().st_mtime == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
