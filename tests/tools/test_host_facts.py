"""Every fault of one host, faked: how bad it is, what is told, what mends it."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from packaging.requirements import Requirement

from ds_sft.hosts import looking
from ds_sft.tools.facts import Fact
from ds_sft.tools.host_facts import Observed, Trial, facts_of, requirements

GIB = 1 << 30
GPU = ["0", "GPU-a", "H200", "143360", "100"]
HEALTHY = Observed(
    time=0.0, hostname="h", python="3.11.7", packages={"torch": "2.13.0+cpu"}, digests={"data_path": "ab"}, cores=8,
    memory_bytes=64 * GIB, shm_bytes=8 * GIB, folder="/out", disk_bytes=900 * GIB, trial=Trial("", 5e8, has_locks=True),
    umask=0o022, gpus=[GPU, [*GPU[:1], "GPU-b", *GPU[2:]]], gpu_users=[], locks=[], name_address="10.0.0.1",
    address="10.0.0.1", interface="eth0",
)  # fmt: skip
WANTED = [Requirement("torch >=2.13,<2.14")]


def facts(**changes: Any) -> list[Fact]:
    """Judge a host that is healthy but for some changes."""
    observed = msgspec.structs.replace(HEALTHY, **changes)
    return list(facts_of(observed, WANTED, paths={"data_path": "/d.json"}))


def test_a_healthy_host_has_only_good_facts() -> None:
    assert [(fact.name, fact.level) for fact in facts()] == [
        (name, "good") for name in ("versions", "GPUs", "memory", "disk", "umask")
    ]
    assert facts()[1].told == "2 x H200 140 GiB"


@dataclass(frozen=True)
class Case:
    """A change, and the fact that it must give."""

    change: dict[str, Any]
    level: str
    told: str
    fix: str


INSTALL = "pip install -e . -c constraints.txt"
CASES = {
    "another version": Case(
        {"packages": {"torch": "2.12.1"}}, "fault", "torch 2.12.1 (tested <2.14,>=2.13)", INSTALL
    ),
    "no package": Case({"packages": {"torch": None}}, "fault", "torch is missing (needs <2.14,>=2.13)", INSTALL),
    "no data": Case(
        {"digests": {"data_path": None}}, "fault", "/d.json does not exist", "copy it there, or use a shared folder",
    ),
    "a busy GPU": Case(
        {"gpus": [[*GPU[:4], "100000"]], "gpu_users": [["GPU-a", "4121", "99000"]]},
        "fault", "GPU 0: 97.7 GiB used by process 4121", "end it, or choose other GPUs with CUDA_VISIBLE_DEVICES",
    ),
    "a shared GPU": Case(
        {"gpu_users": [["GPU-b", "7", "90"]]},
        "warning", "GPU 0: 0.1 GiB used by process 7", "end it, or choose other GPUs with CUDA_VISIBLE_DEVICES",
    ),
    "a small /dev/shm": Case(
        {"shm_bytes": 64 << 20},
        "warning", "64.0 GiB of memory free, /dev/shm 0.1 GiB (< 1.0 GiB): data workers will crash",
        "docker run --shm-size=8g",
    ),
    "little memory": Case(
        {"memory_bytes": GIB}, "warning", "1.0 GiB of memory free, /dev/shm 8.0 GiB", "end other programs",
    ),
    "a stale lock": Case(
        {"locks": [("/x/lock", 601.0), ("/y/lock", 599.0)]},
        "warning", "/x/lock is 10 min old; a build that was killed leaves it, and all others wait for it",
        "if no compiler runs: rm /x/lock",
    ),
    "a folder that refuses": Case(
        {"trial": Trial("Read-only file system", 0.0, has_locks=False)},
        "fault", "/out: 900.0 GiB free, but writing failed: Read-only file system",
        "mend its mode, free space, or name another",
    ),
    "a full disk": Case(
        {"disk_bytes": GIB},
        "warning", "/out: 1.0 GiB free, 500 MB/s with fsync, rename works",
        "free some space: a checkpoint of fp32 AdamW has 14 bytes a parameter",
    ),
    "a slow disk": Case(
        {"trial": Trial("", 1e6, has_locks=True)},
        "warning", "/out: 900.0 GiB free, 1 MB/s with fsync, rename works",
        "expect long saves, or name another output_dir",
    ),
    "no locks": Case(
        {"trial": Trial("", 5e8, has_locks=False)},
        "warning", "/out: 900.0 GiB free, 500 MB/s with fsync, rename works, locks do not",
        "never start two jobs with one output_dir at the same moment",
    ),
    "a tight umask": Case(
        {"umask": 0o077}, "warning", "0077: others cannot read what is saved", "umask 022, if they shall"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_fault_gives_its_line_and_its_fix(name: str) -> None:
    case = CASES[name]
    (found,) = (fact for fact in facts(**case.change) if fact.level != "good")
    assert (found.level, found.told, found.fix) == (case.level, case.told, case.fix)


def test_a_host_without_gpus_says_how_many_cores_it_has() -> None:
    assert facts(gpus=[])[1].told == "none; 8 CPU cores"


def test_the_versions_are_those_of_our_own_metadata_without_extras() -> None:
    names = {one.name for one in requirements()}
    assert {"torch", "deepspeed", "transformers"} <= names
    assert not {"ruff", "bitsandbytes"} & names


def test_what_is_looked_at_is_what_is_judged() -> None:
    answer = looking.look(
        packages=["torch", "no-such"],
        paths={"none": "/none"},
        output_dir="/none/x",
        towards="127.0.0.1",
        extensions=["/none"],
    )
    observed = msgspec.convert(msgspec.json.decode(msgspec.json.encode(answer)), Observed)
    assert observed.packages["no-such"] is None
    assert observed.digests == {"none": None}
    assert (observed.folder, observed.address, observed.interface) == ("/", "127.0.0.1", "lo")
