"""A real Slurm of two nodes runs the batch script, and puts a job that was asked to stop back into the queue."""

import time

import pytest

from tests.conftest import ROOT
from tests.multinode.cluster import Cluster, bin_of_this_python, losses
from tests.multinode.slurm import obstacle_to_slurm, start_slurm

SECONDS = 300.0


def wait_for(cluster: Cluster, environment: dict[str, str], job: str, told: str) -> None:
    until = time.monotonic() + SECONDS
    while told not in (state := cluster.lab.run("h0", ["scontrol", "show", "job", job], environment).stdout):
        assert time.monotonic() < until, state
        assert "FAILED" not in state, (cluster.lab.folder / "job.log").read_text()[-4000:]
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.skipif(obstacle_to_slurm() is not None, reason=f"Slurm is {obstacle_to_slurm()}")
def test_a_job_that_is_preempted_goes_back_into_the_queue_and_ends_with_equal_losses(
    cluster: Cluster, flags: list[str]
) -> None:
    lab = cluster.lab
    environment = cluster.environment | {
        "SLURM_CONF": str(start_slurm(lab)), "DS_SFT_VENV": str(bin_of_this_python().parent),
        "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "eth0",
    }  # fmt: skip
    whole = lab.folder / "whole"
    ended = cluster.launch(*flags, "--output_dir", str(whole)).end()
    assert ended.code == 0, ended.text[-4000:]

    output, log = lab.folder / "slurm-out", lab.folder / "job.log"
    script = str(ROOT / "launchers" / "slurm.sbatch")
    words = ["sbatch", "--parsable", "--nodes=2", f"--output={log}", script, *flags, "--output_dir", str(output)]
    job = lab.run("h0", words, environment, cwd=ROOT).stdout.strip()
    until = time.monotonic() + SECONDS
    while not log.exists() or "step 2/" not in log.read_text():
        assert time.monotonic() < until, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)
    lab.run("h0", ["scancel", "--batch", "--signal=USR1", job], environment)
    wait_for(cluster, environment, job, "Restarts=1")
    assert "stopped after step" in log.read_text()
    # A job that comes back waits two minutes by itself.
    lab.run("h0", ["scontrol", "update", f"jobid={job}", "StartTime=now"], environment)
    wait_for(cluster, environment, job, "JobState=COMPLETED")
    assert "going on from" in log.read_text()
    assert losses(output) == losses(whole)
