"""Which address the hosts of a job use for each other: never one on loopback, which serves nobody else."""

import socket
from collections.abc import Sequence

from ds_sft.errors import LaunchError
from ds_sft.hosts.hostfile import Host

_LOOPBACK = "127."
_ANY_PORT = 9


def address_of(name: str) -> str:
    """Give the IPv4 address of a name.

    Args:
        name: Of a host.

    Returns:
        As this host resolves it.

    Raises:
        LaunchError: When it has none.
    """
    try:
        return str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        told = error.strerror or str(error)
        raise LaunchError(
            f"hosts: {name} must have an IPv4 address, but: {told}; add it to DNS or /etc/hosts"
        ) from error


def is_own(address: str) -> bool:
    """Tell whether an address belongs to this host, by trying to use it.

    Args:
        address: IPv4.

    Returns:
        Whether it does.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def own_address_towards(address: str) -> str:
    """Give the address that this host has in the eyes of another; nothing is sent.

    Args:
        address: IPv4, of the other host.

    Returns:
        IPv4.

    Raises:
        LaunchError: When there is no way to it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, _ANY_PORT))
        except OSError as error:
            raise LaunchError(
                f"network: there must be a way to {address}, but: {error.strerror}; check the routes"
            ) from error
        return str(probe.getsockname()[0])


def master_address(hosts: Sequence[Host]) -> str:
    """Give the address under which all hosts reach the first one.

    Args:
        hosts: Of the job.

    Returns:
        IPv4; on loopback only when the first host is alone.

    Raises:
        LaunchError: When the first one's name leads to loopback and this is another host.
    """
    first = address_of(hosts[0].name)
    if len(hosts) == 1 or not first.startswith(_LOOPBACK):
        return first
    # Debian gives a host's own name 127.0.1.1. What the second host sees of this one is right where this is the first.
    other = address_of(hosts[1].name)
    if other.startswith(_LOOPBACK):
        raise LaunchError(
            f"hosts: names must lead to addresses that others reach, but {hosts[0].name} and {hosts[1].name} lead to "
            f"{first} and {other}; mend /etc/hosts"
        )
    return own_address_towards(other)
