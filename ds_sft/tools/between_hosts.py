"""Judges how hosts fit together: the same things on all of them, and ways between them."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ds_sft.errors import LaunchError
from ds_sft.hosts.hostfile import Host
from ds_sft.hosts.remote import Remote
from ds_sft.tools.facts import Fact, fault, good, warning
from ds_sft.tools.host_facts import Observed

_SECONDS = 20.0
_REDUCE_SECONDS = 90.0
_MOST_SKEW_SECONDS = 2.0
_SHARED_SECONDS = 3.0
_SHOWN_DIGITS = 12
_LOOPBACK = "127."
_REDUCE = """
import os, time, datetime, torch, torch.distributed as dist
rank = int(os.environ["RANK"])
backend = os.environ["DS_SFT_BACKEND"]
device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
dist.init_process_group(backend, timeout=datetime.timedelta(seconds=30))
part = torch.ones(1 << 20, device=device)
rounds, began = 0, time.monotonic()
go_on = torch.ones(1, device=device)
while go_on.item():
    part.fill_(1)
    dist.all_reduce(part)
    assert part[-1].item() == dist.get_world_size()
    rounds += 1
    go_on.fill_(float(time.monotonic() - began < 2.0))
    dist.broadcast(go_on, 0)
print(rounds * part.numel() * 4 / (time.monotonic() - began))
dist.destroy_process_group()
"""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Seen:
    """A host that answers.

    Args:
        host: As in the hostfile.
        remote: Its probe.
        observed: What was seen.
        skew_seconds: Its clock less ours.
        doubt_seconds: By how much the skew may be wrong.
    """

    host: Host
    remote: Remote
    observed: Observed
    skew_seconds: float
    doubt_seconds: float


def on_all(seen: Sequence[Seen], act: Callable[[Seen], Result]) -> list[Result]:
    """Do something with all hosts at the same time.

    Args:
        seen: The hosts.
        act: What.

    Returns:
        The results in the order of the hosts.
    """
    with ThreadPoolExecutor(max(1, len(seen))) as pool:
        return list(pool.map(act, seen))


def same_facts(seen: Sequence[Seen], *, wanted: Sequence[str], paths: Mapping[str, str]) -> Iterator[Fact]:
    """Hold every host against the first one.

    Args:
        seen: The hosts; at least one.
        wanted: Packages that are compared.
        paths: Name -> path of what must be the same.

    Yields:
        The facts.
    """
    first, *others = seen
    differing = 0
    for other in others:
        for name, ours, theirs in _differences(first.observed, other.observed, wanted):
            differing += 1
            told = f"{name} differs from the one on {first.host.name} ({ours} there, {theirs} here)"
            where = f": copy {paths[name]}" if name in paths else ""
            yield fault(other.host.name, told, f"make them the same{where}")
    if others and not differing:
        what = ", ".join(["python", "packages", *paths])
        yield good("same on all hosts", what)
    for one in seen:
        yield from _clock(one)
        yield from _slots(one)
        yield from _own_name(one)


def way_facts(seen: Sequence[Seen], *, master_addr: str, master_port: int) -> Iterator[Fact]:
    """Try the ways that ranks take: the port of the first host, and high ports in both directions.

    Args:
        seen: The hosts; at least two.
        master_addr: Address of the first host.
        master_port: Port of the first host.

    Yields:
        The facts.
    """
    first = seen[0]
    high = on_all(seen, lambda one: one.remote.ask("listen", seconds=_SECONDS, port=0)["port"])
    opened = first.remote.ask("listen", seconds=_SECONDS, port=master_port)
    # Enough that every host is called once and calls once, and that all call the first.
    ring = {
        one.host.name: (seen[(place + 1) % len(seen)], high[(place + 1) % len(seen)]) for place, one in enumerate(seen)
    }

    def call(one: Seen) -> list[str]:
        other, port = ring[one.host.name]
        address = master_addr if other is first else other.host.name
        places = [[master_addr, master_port], [address, port]]
        told: list[str] = one.remote.ask("connect", seconds=_SECONDS, places=places)["faults"]
        return told

    faults = list(_busy(first.host.name, opened["fault"], master_port))
    for one, (master, way) in zip(seen, on_all(seen, call), strict=True):
        other, port = ring[one.host.name]
        if master and not opened["fault"]:
            told = f"cannot reach {first.host.name} at {master_addr}:{master_port} ({master})"
            faults.append(fault(one.host.name, told, "open the port, or give another --master_addr or --master_port"))
        if way:
            told = f"cannot reach {other.host.name} at port {port} ({way}); ranks use ports of this kind"
            faults.append(fault(one.host.name, told, f"open ports 1024-65535 of {other.host.name} for the other hosts"))
    on_all(seen, lambda one: one.remote.ask("hush", seconds=_SECONDS))
    yield from faults or [good("network", f"port {master_port} of {master_addr} and high ports answer both ways")]


def sharing_fact(seen: Sequence[Seen], output_dir: str) -> Fact:
    """Find out whether all hosts see the same output folder.

    Args:
        seen: The hosts; at least two.
        output_dir: Absolute; need not exist.

    Returns:
        The fact; a warning when they do not.
    """
    first, *others = seen
    mark = str(Path(first.observed.folder) / f".ds_sft.seen-{secrets.token_hex(8)}")
    told = first.remote.ask("mark", seconds=_SECONDS, path=mark)["fault"]
    if told:
        return fault("output_dir", f"{output_dir}: {told}", "mend its mode, or name another folder")
    try:
        blind = [
            one.host.name
            for one, is_there in zip(others, on_all(others, lambda one: _sees(one, mark)), strict=True)
            if not is_there
        ]
    finally:
        first.remote.ask("unmark", seconds=_SECONDS, path=mark)
    if not blind:
        return good("output_dir", f"{output_dir} is shared by all hosts")
    return warning(
        "output_dir",
        f"{output_dir} on {', '.join(blind)} is another folder than on {first.host.name}: each host keeps its own part",
        "use a shared folder; otherwise only the same hosts in the same order can go on, and the export is on "
        f"{first.host.name}",
    )


def reduce_fact(seen: Sequence[Seen], *, master_addr: str, master_port: int) -> Fact:
    """Add up a tensor over all hosts for two seconds, as ranks do with gradients.

    Args:
        seen: The hosts; at least two.
        master_addr: Address of the first host.
        master_port: Port of the first host.

    Returns:
        The fact.
    """
    backend = "nccl" if all(one.observed.gpus for one in seen) else "gloo"

    def reduce(numbered: tuple[int, Seen]) -> dict[str, Any]:
        rank, one = numbered
        variables = {
            "RANK": str(rank), "WORLD_SIZE": str(len(seen)), "LOCAL_RANK": "0", "MASTER_ADDR": master_addr,
            "MASTER_PORT": str(master_port), "DS_SFT_BACKEND": backend, **socket_variables(one.observed.interface),
        }  # fmt: skip
        return one.remote.ask(
            "start",
            seconds=_REDUCE_SECONDS + _SECONDS,
            program=_REDUCE,
            variables=variables,
            limit_seconds=_REDUCE_SECONDS,
        )

    with ThreadPoolExecutor(len(seen)) as pool:
        done = list(pool.map(reduce, enumerate(seen)))
    for one, ended in zip(seen, done, strict=True):
        if ended["code"]:
            return fault(one.host.name, f"{backend} all-reduce failed: {ended['err']}", "mend this before a launch")
    speed = float(done[0]["out"]) / 1e6
    return good("all-reduce", f"{backend}, 4 MiB over {len(seen)} hosts: {speed:.0f} MB/s")


def socket_variables(interface: str) -> dict[str, str]:
    """Name the network interface that leads to the other hosts; by their own names, hosts may find loopback only.

    Args:
        interface: Its name; empty when it is not known.

    Returns:
        Variables for gloo and NCCL.
    """
    # `=` takes the very name; NCCL would otherwise take it for the beginning of one.
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"} if interface else {}


def _differences(first: Observed, other: Observed, wanted: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    if first.python != other.python:
        yield "python", first.python, other.python
    for name in wanted:
        if first.packages.get(name) != other.packages.get(name):
            yield name, first.packages.get(name) or "none", other.packages.get(name) or "none"
    for name, ours in first.digests.items():
        theirs = other.digests.get(name)
        # What is missing is told elsewhere.
        if ours and theirs and ours != theirs:
            yield name, ours[:_SHOWN_DIGITS], theirs[:_SHOWN_DIGITS]


def _clock(one: Seen) -> Iterator[Fact]:
    if abs(one.skew_seconds) > _MOST_SKEW_SECONDS + one.doubt_seconds:
        yield warning(one.host.name, f"its clock is {one.skew_seconds:+.1f} s off", "run chrony or ntpd on all hosts")


def _slots(one: Seen) -> Iterator[Fact]:
    num_gpus = len(one.observed.gpus)
    if num_gpus and one.host.slots > num_gpus:
        yield fault(one.host.name, f"slots={one.host.slots}, but it has {num_gpus} GPUs", "mend the hostfile")
    elif one.host.slots < num_gpus:
        yield warning(one.host.name, f"slots={one.host.slots} of {num_gpus} GPUs", "raise slots, if all shall be used")


def _own_name(one: Seen) -> Iterator[Fact]:
    address = one.observed.name_address
    if not address or address.startswith(_LOOPBACK):
        told = f"its own name {one.observed.hostname} leads to {address or 'nothing'}, which others cannot reach"
        fix = f"mend /etc/hosts; `ds-sft launch` sets GLOO_SOCKET_IFNAME={one.observed.interface} by itself"
        yield warning(one.host.name, told, fix)


def _busy(name: str, told: str, port: int) -> Iterator[Fact]:
    if told:
        yield fault(name, f"port {port} cannot be used ({told})", "end what uses it, or give another --master_port")


def _sees(one: Seen, path: str) -> bool:
    try:
        return bool(one.remote.ask("see", seconds=_SECONDS, path=path, wait_seconds=_SHARED_SECONDS)["is_there"])
    except LaunchError:
        return False
