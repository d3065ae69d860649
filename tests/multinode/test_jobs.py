"""The same job on two hosts gives the same losses under every launcher, and after every loss."""

import shutil
import time

import pytest

from tests.conftest import ROOT
from tests.multinode.cluster import STEPS, Cluster, Running, bin_of_this_python, losses

OUTAGE_SECONDS = 5.0
# What a host may not find by itself; pdsh hands it on.
TRAVELS = {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster, flags: list[str]) -> list[float]:
    """The losses of a job that nothing happens to, on both hosts under `ds-sft launch`."""
    output = cluster.lab.folder / "whole"
    ended = cluster.launch(*flags, "--output_dir", str(output)).end()
    assert ended.code == 0, ended.text[-4000:]
    cluster.wait_until_nobody_is_left(5)
    found = losses(output)
    assert len(found) == STEPS
    return found


def multi_node(cluster: Cluster, host: str, launcher: str, words: list[str]) -> Running:
    """Start launchers/multi_node.sh on a host."""
    script = ["bash", str(ROOT / "launchers" / "multi_node.sh"), "--launcher", launcher, str(cluster.hostfile), *words]
    return cluster.start(host, script, DS_SFT_VENV=str(bin_of_this_python().parent), **TRAVELS)


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh is not installed")
def test_pdsh_gives_the_same_losses(cluster: Cluster, flags: list[str], uninterrupted: list[float]) -> None:
    output = cluster.lab.folder / "pdsh"
    (cluster.lab.folder / ".deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in TRAVELS.items()))
    try:
        ended = multi_node(cluster, "h0", "pdsh", [*flags, "--output_dir", str(output)]).end()
    finally:
        (cluster.lab.folder / ".deepspeed_env").unlink()
    assert ended.code == 0, ended.text[-4000:]
    assert losses(output) == uninterrupted
    cluster.wait_until_nobody_is_left(10)


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("no_ssh", marks=pytest.mark.slow)])
def test_a_launcher_on_every_host_gives_the_same_losses(
    launcher: str, cluster: Cluster, flags: list[str], uninterrupted: list[float]
) -> None:
    output = cluster.lab.folder / launcher
    jobs = [multi_node(cluster, host, launcher, [*flags, "--output_dir", str(output)]) for host in ("h0", "h1")]
    for job in jobs:
        ended = job.end()
        assert ended.code == 0, ended.text[-4000:]
    assert losses(output) == uninterrupted
    cluster.wait_until_nobody_is_left(10)


def test_a_job_lives_through_an_outage_a_killed_rank_and_a_lost_host(
    cluster: Cluster, flags: list[str], uninterrupted: list[float]
) -> None:
    output = cluster.lab.folder / "lost"
    job = cluster.launch("--max_restarts", "2", *flags, "--output_dir", str(output))
    job.wait_for("step 2/")
    cluster.lab.cut("h1")
    time.sleep(OUTAGE_SECONDS)
    cluster.lab.mend("h1")
    job.wait_for("step 6/")
    assert "starting again" not in job.text()
    cluster.signal_rank("h1", "KILL")
    job.wait_for("going on from", after="starting again")
    job.wait_for("step 9/", after="going on from")
    cluster.lab.power_off("h1")
    try:
        ended = job.end()
    finally:
        cluster.lab.power_on("h1")
    assert ended.code == 0, ended.text[-6000:]
    assert "h1: ranks: must live, but rank 1 was killed by SIGKILL" in ended.text
    assert "hosts: 2 -> 1, because the others do not answer: h0" in ended.text
    assert losses(output) == pytest.approx(uninterrupted, abs=1e-5)
    cluster.wait_until_nobody_is_left(5)


def test_a_launcher_that_is_killed_or_asked_to_stop_leaves_a_checkpoint_and_nobody(
    cluster: Cluster, flags: list[str], uninterrupted: list[float]
) -> None:
    output = cluster.lab.folder / "stopped"
    words = [*flags, "--output_dir", str(output)]
    job = cluster.launch(*words)
    job.wait_for("step 2/")
    (launcher,) = (found for found, line in cluster.lab.processes("h0", "ds_sft.cli launch"))
    cluster.lab.root("h0", f"kill -KILL {launcher}")
    cluster.wait_until_nobody_is_left()
    assert [found.name for found in output.glob("checkpoint-*")] != []
    job = cluster.launch(*words)
    job.wait_for("going on from")
    job.wait_for("step 9/")
    (launcher,) = (found for found, line in cluster.lab.processes("h0", "ds_sft.cli launch"))
    cluster.lab.root("h0", f"kill -TERM {launcher}")
    ended = job.end()
    assert ended.code == 75, ended.text[-4000:]
    cluster.wait_until_nobody_is_left(5)
    ended = cluster.launch(*words).end()
    assert ended.code == 0, ended.text[-4000:]
    assert losses(output) == uninterrupted
