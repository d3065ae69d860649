"""Hostfiles: what is read, and that nothing else gets past."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ds_sft.errors import ConfigError, MissingInputError
from ds_sft.hosts.hostfile import Host, parse_hostfile, read_hostfile

HOSTILE = [
    "h0;touch /tmp/x",
    "`id`",
    "$(id)",
    "-oProxyCommand=id",
    "h0,h1",
    "h[0-3]",
    "^file",
    "root@h0",
    "h0\u00a0slots=1",
    "h0'",
    'h0"',
    "h0|id",
    "h0&",
    "h0\\",
    "../h0",
    "h0:22",
    "%h",
    "h0.",
    "-",
    "h\x00",
    "h0\x0bh1",
    "\u2028h0",
    "höst",
    "a" * 254,
]


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_hostfile(text, name="hosts")
    return caught.value.faults


def test_hosts_come_in_the_order_of_the_file_without_comments() -> None:
    text = "# cluster\n\nnode-2.lan slots=8\n  10.0.0.1\tslots=4   # spare\r\nn_1 slots=1"
    assert parse_hostfile(text, name="f") == (Host("node-2.lan", 8), Host("10.0.0.1", 4), Host("n_1", 1))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_a_shell_or_ssh_could_obey_is_refused_with_its_line(name: str) -> None:
    (fault,) = faults(f"ok slots=1\n{name} slots=1\n")
    assert fault.startswith("hosts:2: ")
    assert fault.isprintable()


@pytest.mark.parametrize("line", ["h0", "h0 slots=", "h0 slots=2 slots=3", "h0 slots=2;id", "h0 slot=2", "h0 slots=٣"])
def test_a_line_of_another_form_is_refused(line: str) -> None:
    (fault,) = faults(line)
    assert fault.startswith("hosts:1: a line must be `NAME slots=N`, but is ")


@pytest.mark.parametrize("slots", [0, 1025])
def test_slots_have_limits(slots: int) -> None:
    assert faults(f"h slots={slots}") == (
        f"hosts:1: slots must be from 1 to 1024, but is {slots}; give the number of GPUs",
    )


def test_a_host_that_stands_there_twice_is_refused_with_both_lines() -> None:
    assert faults("h0 slots=1\nh1 slots=1\nH0 slots=2") == (
        "hosts:3: a host must stand there once, but H0 stands in line 1 too; join their slots",
    )


def test_all_faults_are_told_at_once() -> None:
    assert [fault.split(": ")[0] for fault in faults("a\nb slots=1\n;\n")] == ["hosts:1", "hosts:3"]


def test_a_file_without_a_host_is_refused() -> None:
    assert faults("# nothing\n") == ("hosts: hostfile must name a host, but names none; add `NAME slots=N` lines",)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="hostfile: file must exist"):
        read_hostfile(tmp_path / "none")


@given(st.binary(max_size=200))
@example(b"\xff slots=1")
@example(b"h slots=" + b"9" * 5000)
def test_no_file_crashes_the_reader_and_what_is_read_is_plain(raw: bytes) -> None:
    plain = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
    hosts: tuple[Host, ...] = ()
    told: tuple[str, ...] = ()
    try:
        hosts = parse_hostfile(raw.decode("utf-8", "surrogateescape"), name="f")
    except ConfigError as error:
        told = error.faults
    assert bool(hosts) != bool(told)
    assert all(set(host.name) <= plain for host in hosts)
    assert all(fault.isprintable() for fault in told)


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True), st.integers(1, 1024)),
        min_size=1,
        unique_by=lambda host: host[0],
    )
)
def test_what_is_written_is_read_back(hosts: list[tuple[str, int]]) -> None:
    text = "".join(f"{name} slots={slots}\n" for name, slots in hosts)
    assert [(host.name, host.slots) for host in parse_hostfile(text, name="f")] == hosts
