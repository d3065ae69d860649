"""How hosts fit together, with fakes in the place of hosts."""

from typing import Any, cast

import msgspec
import pytest

from ds_sft.hosts.hostfile import Host
from ds_sft.hosts.remote import Remote
from ds_sft.tools.between_hosts import Seen, reduce_fact, same_facts, sharing_fact, socket_variables, way_facts
from ds_sft.tools.facts import Fact
from tests.tools.test_host_facts import GPU, HEALTHY

PATHS = {"deepspeed": "/z.json"}


class FakeRemote:
    """Answers what it was told to answer, and keeps what it was asked."""

    def __init__(self, answers: dict[str, dict[str, Any]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def ask(self, do: str, *, seconds: float, **arguments: Any) -> dict[str, Any]:
        self.asked.append((do, arguments))
        return self.answers[do]


GOOD: dict[str, dict[str, Any]] = {
    "listen": {"port": 4000, "fault": ""}, "connect": {"faults": ["", ""]}, "hush": {}, "mark": {"fault": ""},
    "see": {"is_there": True}, "unmark": {}, "start": {"code": 0, "out": "2e8", "err": ""},
}  # fmt: skip


def host(
    name: str, answers: dict[str, Any] | None = None, *, slots: int = 1, skew: float = 0.0, **changes: Any
) -> Seen:
    """Make a host that is healthy but for some changes."""
    remote = cast("Remote", FakeRemote(GOOD | (answers or {})))
    observed = msgspec.structs.replace(HEALTHY, **({"gpus": [GPU], "digests": {"deepspeed": "a" * 64}} | changes))
    return Seen(Host(name, slots), remote, observed, skew, 0.1)


def compared(*seen: Seen) -> list[Fact]:
    return [fact for fact in same_facts(seen, wanted=["torch"], paths=PATHS) if fact.level != "good"]


def test_equal_hosts_say_what_is_the_same() -> None:
    (fact,) = same_facts([host("h0"), host("h1")], wanted=["torch"], paths=PATHS)
    assert (fact.level, fact.told) == ("good", "python, packages, deepspeed")


@pytest.mark.parametrize(
    ("changes", "told", "fix"),
    [
        ({"python": "3.11.9"}, "python differs from the one on h0 (3.11.7 there, 3.11.9 here)", "make them the same"),
        (
            {"packages": {"torch": None}},
            "torch differs from the one on h0 (2.13.0+cpu there, none here)",
            "make them the same",
        ),
        (
            {"digests": {"deepspeed": "b" * 64}},
            "deepspeed differs from the one on h0 (aaaaaaaaaaaa there, bbbbbbbbbbbb here)",
            "make them the same: copy /z.json",
        ),
        ({"slots": 2}, "slots=2, but it has 1 GPUs", "mend the hostfile"),
    ],
)
def test_what_differs_is_a_fault_of_the_later_host(changes: dict[str, Any], told: str, fix: str) -> None:
    assert compared(host("h0"), host("h1", **changes)) == [Fact("h1", "fault", told, fix)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"skew": 9.0}, "its clock is +9.0 s off"),
        ({"gpus": [GPU, GPU]}, "slots=1 of 2 GPUs"),
        ({"name_address": "127.0.1.1"}, "its own name h leads to 127.0.1.1, which others cannot reach"),
        ({"name_address": ""}, "its own name h leads to nothing, which others cannot reach"),
    ],
)
def test_what_a_job_can_live_with_is_a_warning(changes: dict[str, Any], told: str) -> None:
    assert [(fact.name, fact.level, fact.told) for fact in compared(host("h0"), host("h1", **changes))] == [
        ("h1", "warning", told)
    ]


def test_a_clock_may_be_off_by_what_the_way_leaves_in_doubt() -> None:
    assert compared(host("h0"), host("h1", skew=2.05)) == []


def ways(*seen: Seen) -> list[str]:
    found = way_facts(seen, master_addr="10.0.0.1", master_port=29500)
    return [f"{fact.name}: {fact.told}" for fact in found if fact.level == "fault"]


def test_ways_that_answer_are_one_good_fact() -> None:
    assert ways(host("h0"), host("h1")) == []


def test_a_closed_master_port_is_the_fault_of_who_cannot_reach_it() -> None:
    assert ways(host("h0"), host("h1", {"connect": {"faults": ["timed out", ""]}})) == [
        "h1: cannot reach h0 at 10.0.0.1:29500 (timed out)"
    ]


def test_closed_high_ports_name_both_hosts() -> None:
    assert ways(host("h0", {"connect": {"faults": ["", "timed out"]}}), host("h1")) == [
        "h0: cannot reach h1 at port 4000 (timed out); ranks use ports of this kind"
    ]


def test_a_busy_master_port_is_told_once() -> None:
    first = host("h0", {"listen": {"port": -1, "fault": "Address already in use"}})
    other = host("h1", {"connect": {"faults": ["refused", ""]}})
    assert ways(first, other) == ["h0: port 29500 cannot be used (Address already in use)"]


def test_the_way_back_to_the_first_host_goes_by_the_address_that_ranks_use() -> None:
    first, last = host("h0"), host("h1")
    ways(first, last)
    asked = dict(cast("FakeRemote", last.remote).asked)
    assert asked["connect"] == {"places": [["10.0.0.1", 29500], ["10.0.0.1", 4000]]}


@pytest.mark.parametrize(("is_there", "level"), [(True, "good"), (False, "warning")])
def test_a_folder_is_shared_when_all_see_the_mark_of_the_first(is_there: bool, level: str) -> None:
    first, last = host("h0"), host("h1", {"see": {"is_there": is_there}})
    assert sharing_fact([first, last], "/out").level == level
    marked, unmarked = (dict(cast("FakeRemote", first.remote).asked)[act]["path"] for act in ("mark", "unmark"))
    assert marked == unmarked == dict(cast("FakeRemote", last.remote).asked)["see"]["path"]


def test_a_folder_that_refuses_the_mark_is_a_fault() -> None:
    assert sharing_fact([host("h0", {"mark": {"fault": "Permission denied"}}), host("h1")], "/out") == Fact(
        "output_dir", "fault", "/out: Permission denied", "mend its mode, or name another folder"
    )


@pytest.mark.parametrize(("gpus", "backend"), [([GPU], "nccl"), ([], "gloo")])
def test_the_all_reduce_uses_the_jobs_own_backend(gpus: list[list[str]], backend: str) -> None:
    fact = reduce_fact([host("h0", gpus=gpus), host("h1", gpus=gpus)], master_addr="10.0.0.1", master_port=1)
    assert fact.told == f"{backend}, 4 MiB over 2 hosts: 200 MB/s"


def test_an_all_reduce_that_fails_names_host_and_reason() -> None:
    broken = host("h1", {"start": {"code": 1, "out": "", "err": "DistNetworkError: refused"}})
    fact = reduce_fact([host("h0"), broken], master_addr="10.0.0.1", master_port=1)
    assert (fact.name, fact.level, fact.told) == ("h1", "fault", "nccl all-reduce failed: DistNetworkError: refused")


def test_interfaces_are_named_exactly() -> None:
    assert socket_variables("eth0") == {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "=eth0"}
    assert socket_variables("") == {}
