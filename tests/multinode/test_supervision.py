"""A job whose host, rank or launcher is lost ends in time with one reason, and nothing of it is left anywhere.

The ranks are a stand-in that hangs, as real ones do when a collective never ends.
"""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.multinode.cluster import Cluster, Running

PATIENCE = 10
LIMITS = ["--patience_seconds", str(PATIENCE), "--stop_seconds", "3"]


@pytest.fixture(autouse=True)
def _toy(cluster: Cluster) -> Iterator[None]:
    """Let both hosts find the stand-in in the place of the main job."""
    train = ROOT / "ds_sft" / "train.py"
    for host in cluster.lab.addresses:
        cluster.lab.root(host, f"mount --bind {Path(__file__).parent / 'toy.py'} {train}")
    yield
    for host in cluster.lab.addresses:
        cluster.lab.root(host, f"umount {train}")


def started(cluster: Cluster, manner: str = "steady") -> Running:
    """Start the job and wait until both ranks are at work."""
    job = cluster.launch(*LIMITS, "--manner", manner)
    job.wait_for("\nstep 3/")
    job.wait_for("\nh1: step 3/")
    return job


def reason(text: str) -> str:
    """Give the launcher's own error."""
    return text.rpartition("\nerror: ")[2].splitlines()[0]


def test_a_killed_rank_ends_the_job_with_its_name(cluster: Cluster) -> None:
    job = started(cluster)
    cluster.signal_rank("h1", "KILL")
    ended = job.end(30)
    assert ended.code == 69
    assert reason(ended.text).startswith("h1: ranks: must live, but rank 1 was killed by SIGKILL")
    cluster.wait_until_nobody_is_left(5)


def test_a_stopped_rank_ends_the_job(cluster: Cluster) -> None:
    job = started(cluster)
    cluster.signal_rank("h1", "STOP")
    ended = job.end(PATIENCE + 20)
    assert ended.code == 69
    assert re.match(r"h1: ranks: must run, but process \d+ is stopped for 1\d s", reason(ended.text))
    cluster.wait_until_nobody_is_left(5)


def test_a_cable_that_is_pulled_ends_the_job_on_both_sides(cluster: Cluster) -> None:
    job = started(cluster)
    cluster.lab.cut("h1")
    try:
        ended = job.end(PATIENCE + 20)
        assert ended.code == 69
        assert reason(ended.text) == f"h1: ssh: no sign of life for {PATIENCE} s; all hosts were stopped"
        cluster.wait_until_nobody_is_left(20)
    finally:
        cluster.lab.mend("h1")


def test_a_host_without_power_ends_the_job(cluster: Cluster) -> None:
    job = started(cluster)
    cluster.lab.power_off("h1")
    try:
        ended = job.end(PATIENCE + 20)
        assert ended.code == 69
        assert reason(ended.text).startswith("h1: ssh: ")
        assert cluster.left("h0") == []
    finally:
        cluster.lab.power_on("h1")
        cluster.lab.root("h1", f"mount --bind {Path(__file__).parent / 'toy.py'} {ROOT / 'ds_sft' / 'train.py'}")


def test_a_launcher_that_is_killed_takes_everything_with_it(cluster: Cluster) -> None:
    job = started(cluster)
    (launcher,) = (found for found, line in cluster.lab.processes("h0", "ds_sft.cli launch"))
    cluster.lab.root("h0", f"kill -KILL {launcher}")
    assert job.end(10).code in {-signal.SIGKILL, 128 + signal.SIGKILL}
    cluster.wait_until_nobody_is_left(15)


def test_ranks_that_do_not_leave_are_ended_when_the_launcher_is_asked_to_stop(cluster: Cluster) -> None:
    job = started(cluster)
    (launcher,) = (found for found, line in cluster.lab.processes("h0", "ds_sft.cli launch"))
    cluster.lab.root("h0", f"kill -TERM {launcher}")
    assert job.end(30).code == 69
    cluster.wait_until_nobody_is_left(5)


def test_a_package_that_is_broken_on_one_host_ends_the_job_with_what_python_says(cluster: Cluster) -> None:
    ended = cluster.launch(*LIMITS, "--manner", "broken").end(40)
    assert ended.code == 69
    assert reason(ended.text) == "h1: ImportError: cannot import name 'Field' from 'pydantic'; all hosts were stopped"
    cluster.wait_until_nobody_is_left(5)
