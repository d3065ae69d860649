"""Slurm on the hosts of a lab: a controller on the first one, a node on each."""

import os
import shutil
from pathlib import Path

from tests.multinode.lab import Lab

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
_CONFIG = """
ClusterName=lab
SlurmctldHost=h0
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
StateSaveLocation={folder}/slurm/state
SlurmdSpoolDir=/mnt/slurmd
SlurmctldLogFile={folder}/slurm/controller.log
SlurmdLogFile={folder}/slurm/node-%h.log
SchedulerType=sched/backfill
SelectType=select/linear
NodeName=h[0-1] CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def start_slurm(lab: Lab) -> Path:
    """Start it; give its configuration file."""
    folder = lab.folder / "slurm"
    (folder / "state").mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(folder=lab.folder, cores=os.cpu_count()))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    own = "--log-file=/run/munge.log --pid-file=/run/munge.pid --seed-file=/run/munge.seed"
    munge = f"munged --force --key-file={key} {own}"
    for name in lab.addresses:
        lab.root(name, f"mkdir -p /run/munge /mnt/slurmd && chmod 755 /run/munge && {munge}")
    lab.root("h0", f"slurmctld -f {config}")
    for name in lab.addresses:
        lab.root(name, f"slurmd -f {config} -N {name}")
    return config


def obstacle_to_slurm() -> str | None:
    """Say what is missing, or None."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None
