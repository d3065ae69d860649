"""How a job is started, and started again, with fakes in the place of hosts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ds_sft.errors import ConfigError, JobError, LaunchError
from ds_sft.hosts.supervise import Outcome, Patience, Task
from ds_sft.tools import launch as module
from ds_sft.tools.doctor import Examination, Report
from ds_sft.tools.facts import fault
from ds_sft.tools.launch import Wish, launch
from tests.conftest import ROOT

WELL = Outcome(0, "", is_worth_another_try=False)
LOST = Outcome(69, "b: gone", is_worth_another_try=True)
WRONG = Outcome(65, "a: data: broken", is_worth_another_try=False)
FLAGS = ["r.yaml", "--seed", "7"]


class World:
    """Hosts that answer or not, and jobs that end as they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = list(outcomes)
        self.started: list[list[Task]] = []
        self.pauses: list[float] = []
        self.dead: set[str] = set()
        self.is_shared = True
        self.num_gpus = 0
        self.now = 0.0
        self.hostfile = folder / "hosts"
        self.hostfile.write_text("a slots=2\nb slots=1\n")
        (folder / "r.yaml").write_text("data_path: d.json\n")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.setattr(module, "examine", self._examine)
        monkeypatch.setattr(module, "supervise", self._supervise)
        monkeypatch.setattr("ds_sft.tools.launch.time.sleep", self._sleep)
        monkeypatch.setattr("ds_sft.tools.launch.time.monotonic", self._monotonic)

    def launch(self, **changes: Any) -> list[str]:
        wished: dict[str, Any] = {
            "hostfile": self.hostfile, "num_ranks": None, "master_addr": None, "master_port": 29500, "max_restarts": 0,
            "min_hosts": 1, "patience": Patience(20, 120), "is_dry_run": False,
        }  # fmt: skip
        return launch(FLAGS, Wish(**(wished | changes)))

    def hosts(self) -> list[list[str]]:
        return [[task.host for task in tasks] for tasks in self.started]

    def _examine(self, _subject: object, wanted: Examination) -> Report:
        names = [host.name for host in wanted.hosts]
        facts = tuple(fault(name, "ssh: No route to host", "look") for name in names if name in self.dead)
        alive = [name for name in names if name not in self.dead]
        return Report(
            facts, "10.0.0.1", dict.fromkeys(alive, "eth0"), dict.fromkeys(alive, self.num_gpus), self.is_shared
        )

    def _supervise(self, tasks: Sequence[Task], **_: object) -> Outcome:
        self.started.append(list(tasks))
        if len(self.started) == 1 and self.outcomes[0] is LOST:
            self.dead |= self.dies
        return self.outcomes.pop(0)

    dies: frozenset[str] = frozenset()

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def _monotonic(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Two hosts, a with two slots and b with one."""
    return World(monkeypatch, tmp_path, [WELL])


def test_ranks_are_numbered_in_the_order_of_the_hosts(world: World) -> None:
    world.launch()
    ((first, last),) = world.started
    assert (first.host, first.ranks, last.host, last.ranks) == ("a", (0, 1), "b", (2,))
    assert first.world_size == last.world_size == 3
    assert first.command[-4:] == (str(ROOT / "ds_sft" / "train.py"), *FLAGS)
    told = {
        name: last.variables[name] for name in ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "DS_ACCELERATOR")
    }
    assert told == {
        "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "eth0", "DS_ACCELERATOR": "cpu",
    }  # fmt: skip


def test_variables_travel_but_secrets_do_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HOME", "NCCL_DEBUG", "OTHER"):
        monkeypatch.setenv(name, "x")
    Path(".deepspeed_env").write_text("OWN=1\n")
    world.launch()
    variables = world.started[0][0].variables
    assert {name: variables.get(name) for name in ("HF_TOKEN", "HF_HOME", "NCCL_DEBUG", "OTHER", "OWN")} == {
        "HF_TOKEN": None, "HF_HOME": "x", "NCCL_DEBUG": "x", "OTHER": None, "OWN": "1",
    }  # fmt: skip


def test_without_a_hostfile_this_host_gets_a_rank_for_each_gpu(world: World) -> None:
    world.num_gpus = 4
    world.launch(hostfile=None)
    ((task,),) = world.started
    assert (task.host, task.ranks) == ("localhost", (0, 1, 2, 3))


def test_ranks_without_a_hostfile_may_be_asked_for_but_not_with_one(world: World) -> None:
    world.launch(hostfile=None, num_ranks=3)
    assert world.started[0][0].ranks == (0, 1, 2)
    with pytest.raises(ConfigError, match="num_gpus: must not be given with a hostfile, but is 3"):
        world.launch(num_ranks=3)


def test_a_dry_run_prints_commands_and_looks_at_nothing(world: World) -> None:
    world.dead = {"a", "b"}
    lines = world.launch(is_dry_run=True)
    assert [line.split(": ")[0] for line in lines] == ["a ranks 0 1", "b ranks 2"]
    assert all(line.endswith("train.py r.yaml --seed 7") for line in lines)
    assert world.started == []


def test_a_fault_of_the_doctor_starts_nothing(world: World) -> None:
    world.dead = {"b"}
    with pytest.raises(LaunchError, match="doctor: no line may begin with ✗, but 1 do"):
        world.launch()
    assert world.started == []


def test_a_loss_is_followed_by_another_start(world: World) -> None:
    world.outcomes = [LOST, LOST, WELL]
    world.launch(max_restarts=2)
    assert world.hosts() == [["a", "b"]] * 3
    assert world.pauses == [5.0, 10.0]


def test_no_more_starts_than_asked_for(world: World) -> None:
    world.outcomes = [LOST, LOST]
    with pytest.raises(JobError, match="b: gone; all hosts were stopped") as caught:
        world.launch(max_restarts=1)
    assert caught.value.exit_code == 69


def test_what_another_start_cannot_mend_is_told_at_once(world: World) -> None:
    world.outcomes = [WRONG]
    with pytest.raises(JobError, match="a: data: broken") as caught:
        world.launch(max_restarts=9)
    assert caught.value.exit_code == 65


def test_a_host_that_does_not_come_back_is_left_out(world: World) -> None:
    world.outcomes, world.dies = [LOST, WELL], frozenset({"b"})
    world.launch(max_restarts=1)
    assert world.hosts() == [["a", "b"], ["a"]]
    assert world.started[1][0].world_size == 2


@pytest.mark.parametrize(
    ("changes", "is_shared", "told"),
    [({"min_hosts": 2}, True, "min_hosts is 2"), ({}, False, "output_dir is not shared")],
)
def test_with_too_few_hosts_or_folders_of_their_own_it_ends(
    changes: dict[str, Any], is_shared: bool, told: str, world: World
) -> None:
    world.outcomes, world.dies, world.is_shared = [LOST], frozenset({"b"}), is_shared
    with pytest.raises(LaunchError, match=f"hosts: 1 of 2 are left, but {told}"):
        world.launch(max_restarts=1, **changes)
