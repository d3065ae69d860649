"""Which address hosts use for each other."""

import pytest

from ds_sft.errors import LaunchError
from ds_sft.hosts import addresses
from ds_sft.hosts.addresses import address_of, is_own, master_address, own_address_towards
from ds_sft.hosts.hostfile import Host


@pytest.mark.parametrize(("address", "is_ours"), [("127.0.0.1", True), ("192.0.2.1", False)])
def test_an_address_is_own_when_it_can_be_used(address: str, is_ours: bool) -> None:
    assert is_own(address) == is_ours


def test_the_own_address_in_the_eyes_of_loopback_is_loopback() -> None:
    assert own_address_towards("127.0.0.1") == "127.0.0.1"


def test_a_name_without_an_address_is_told() -> None:
    with pytest.raises(LaunchError, match=r"hosts: no-such\.invalid must have an IPv4 address, but: .*; add it to DNS"):
        address_of("no-such.invalid")


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"a": "10.0.0.1", "b": "10.0.0.2"}, "10.0.0.1"), ({"a": "127.0.1.1", "b": "10.0.0.2"}, "own towards 10.0.0.2")],
)
def test_a_first_host_on_loopback_gets_the_address_that_the_second_one_sees(
    found: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "address_of", found.__getitem__)
    monkeypatch.setattr(addresses, "own_address_towards", lambda address: f"own towards {address}")
    assert master_address([Host("a", 1), Host("b", 1)]) == expected


def test_a_host_alone_may_be_on_loopback_but_two_may_not() -> None:
    assert master_address([Host("localhost", 2)]) == "127.0.0.1"
    with pytest.raises(LaunchError, match=r"but localhost and 127\.0\.0\.2 lead to 127\.0\.0\.1 and 127\.0\.0\.2"):
        master_address([Host("localhost", 1), Host("127.0.0.2", 1)])
