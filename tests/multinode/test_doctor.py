"""What is wrong with a host is told in one line, with its reason, before anything starts."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import CONFIGS, ROOT
from tests.multinode.cluster import Cluster


@contextmanager
def changed(cluster: Cluster, host: str, line: str, back: str) -> Iterator[None]:
    """Change a host for a while."""
    cluster.lab.root(host, line)
    try:
        yield
    finally:
        cluster.lab.root(host, back)


@contextmanager
def hidden(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Let a folder be empty on h1."""
    with changed(cluster, "h1", f"mount -t tmpfs none {folder}", f"umount {folder}"):
        yield


@contextmanager
def without_code(cluster: Cluster) -> Iterator[None]:
    """Let h1 have python but not our code, also where python lies below it."""
    kept, python = cluster.lab.folder / "kept", sys.prefix
    hide = (
        f"mkdir -p {kept} && mount --bind {python} {kept} && mount -t tmpfs none {ROOT} && "
        f"mkdir -p {python} && mount --bind {kept} {python}"
    )
    with changed(cluster, "h1", hide, f"umount {python} && umount {ROOT} && umount {kept}"):
        yield


@contextmanager
def closed(cluster: Cluster, host: str, ports: str) -> Iterator[None]:
    """Drop new connections to some ports of a host."""
    rules = (
        "nft add table inet lab && nft add chain inet lab in '{ type filter hook input priority 0; }' && "
        f"nft add rule inet lab in iifname eth0 tcp flags syn / syn,ack tcp dport {ports} drop"
    )
    with changed(cluster, host, rules, "nft delete table inet lab"):
        yield


def only_fault(cluster: Cluster, *words: str) -> str:
    """Let the doctor look; give its one fault."""
    ended = cluster.doctor(*words)
    assert ended.code == 69, ended.text
    assert ended.seconds < 40, ended.text
    (fault,) = ended.faults()
    return fault


def test_hosts_in_order_are_good(cluster: Cluster, flags: list[str]) -> None:
    ended = cluster.doctor(*flags, "--output_dir", str(cluster.lab.folder / "out"))
    assert (ended.code, ended.faults()) == (0, []), ended.text
    for line in (
        "✓ same on all hosts: python, packages, code of ds_sft, deepspeed, data_path, model_name_or_path",
        "✓ network: port 29500 of 10.91.7.1 and high ports answer both ways",
        f"✓ output_dir: {cluster.lab.folder}/out is shared by all hosts",
    ):
        assert f"\n{line}\n" in ended.text


def test_a_python_that_is_missing(cluster: Cluster) -> None:
    with hidden(cluster, Path(sys.prefix)):
        assert re.match(rf"h1: .*{re.escape(sys.executable)}: No such file or directory", only_fault(cluster))


def test_code_that_is_missing(cluster: Cluster) -> None:
    with without_code(cluster):
        assert only_fault(cluster).startswith(f"h1: code of ds_sft: {ROOT}/ds_sft does not exist -> ")


def test_an_unknown_host_key(cluster: Cluster) -> None:
    known = cluster.lab.home("h0") / ".ssh" / "known_hosts"
    text = known.read_text()
    known.write_text(text.splitlines()[0] + "\n")
    try:
        assert only_fault(cluster).startswith("h1: ssh: Host key verification failed. -> try: ssh ")
    finally:
        known.write_text(text)


def test_a_host_without_a_cable(cluster: Cluster) -> None:
    cluster.lab.cut("h1")
    try:
        assert re.match(r"h1: ssh: connect to host h1 port 22: (No route|Connection timed out)", only_fault(cluster))
    finally:
        cluster.lab.mend("h1")


def test_a_master_port_that_is_closed(cluster: Cluster) -> None:
    with closed(cluster, "h0", "29500"):
        assert only_fault(cluster).startswith("h1: cannot reach h0 at 10.91.7.1:29500 (timed out) -> open the port")


def test_high_ports_that_are_closed(cluster: Cluster) -> None:
    with closed(cluster, "h1", "1024-65535"):
        assert re.match(r"h0: cannot reach h1 at port \d+ \(timed out\); ranks use ports", only_fault(cluster))


def test_a_master_port_that_is_busy(cluster: Cluster) -> None:
    listen = "import socket, time; s = socket.create_server(('', 29500)); print('on', flush=True); time.sleep(60)"
    cluster.start("h0", [sys.executable, "-c", listen]).wait_for("on")
    assert only_fault(cluster).startswith("h0: port 29500 cannot be used (Address already in use) -> ")


def test_a_config_that_differs(cluster: Cluster) -> None:
    for number, host in enumerate(cluster.lab.addresses):
        config = (CONFIGS / "zero3.json").read_text() + "\n" * number
        (cluster.lab.folder / host / "disk" / "zero3.json").write_text(config)
    fault = only_fault(cluster, "--deepspeed", "/mnt/zero3.json")
    assert re.match(
        r"h1: deepspeed differs from the one on h0 \(\w{12} there, \w{12} here\) -> make them the same: copy /mnt",
        fault,
    )


def test_a_name_that_leads_to_loopback_is_a_warning(cluster: Cluster) -> None:
    hosts = cluster.lab.folder / "h1" / "hosts"
    text = hosts.read_text()
    hosts.write_text(f"127.0.1.1 h1\n{text}")
    try:
        ended = cluster.doctor()
        assert (ended.code, ended.faults()) == (0, [])
        assert "! h1: its own name h1 leads to 127.0.1.1, which others cannot reach -> " in ended.text
    finally:
        hosts.write_text(text)


def test_a_folder_that_is_not_shared_is_a_warning(cluster: Cluster) -> None:
    ended = cluster.doctor("--output_dir", "/mnt/out")
    assert ended.code == 0
    assert "! output_dir: /mnt/out on h1 is another folder than on h0: each host keeps its own part -> " in ended.text


HOSTILE = ["h1;touch CANARY", "`touch CANARY`", "$(touch CANARY)", "-oProxyCommand=touch CANARY", "h1\ntouch CANARY"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_hostfile_runs_nothing(cluster: Cluster, name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostfile = tmp_path / "hosts"
    hostfile.write_text(f"h0 slots=1\n{name.replace('CANARY', str(canary))} slots=1\n")
    ended = cluster.doctor(hostfile=hostfile)
    assert ended.code == 64, ended.text
    assert f"error: {hostfile}:" in ended.text
    assert not canary.exists()


def test_hostile_paths_run_nothing(cluster: Cluster, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = [
        f"{tmp_path}/{name}" for name in (f"$(touch {canary})", f"`touch {canary}`", f";touch {canary}", "a 'b\" c")
    ]
    for path in hostile:
        ended = cluster.doctor("--data_path", path)
        assert ended.code == 69
        assert len(ended.faults()) == 2, "it is missing on both hosts"
    assert not canary.exists()


def test_the_two_second_all_reduce_measures_the_way(cluster: Cluster) -> None:
    words = [sys.executable, "-m", "ds_sft.cli", "doctor", "--hostfile", str(cluster.hostfile)]
    done = cluster.lab.run("h0", words, cluster.environment, seconds=150)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^✓ all-reduce: gloo, 4 MiB over 2 hosts: \d+ MB/s$", done.stdout, re.MULTILINE)
