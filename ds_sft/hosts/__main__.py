"""`python -m ds_sft.hosts HOSTFILE`: what launchers ask, in one line: is the hostfile good, which address, who am I.

It prints the address of the first host, the own address, the own place in the file (0 for the first; -1 for a host that
is not in it), the own slots and the number of hosts.
"""

import sys
from pathlib import Path

from ds_sft.errors import ConfigError, raise_together
from ds_sft.hosts.addresses import address_of, is_own, master_address, own_address_towards
from ds_sft.hosts.env_file import env_file_faults, env_files
from ds_sft.hosts.hostfile import read_hostfile
from ds_sft.reporting import run


def answer(hostfile: Path) -> str:
    """Judge a hostfile and `.deepspeed_env`, and find this host in the file.

    Args:
        hostfile: Lines of `NAME slots=N`.

    Returns:
        Five words.

    Raises:
        ConfigError: With one line for each fault.
    """
    hosts = read_hostfile(hostfile)
    raise_together([ConfigError(fault) for path in env_files() for fault in env_file_faults(path)])
    master = master_address(hosts)
    place = next((place for place, host in enumerate(hosts) if is_own(address_of(host.name))), -1)
    slots = hosts[place].slots if place >= 0 else 0
    return f"{master} {own_address_towards(master)} {place} {slots} {len(hosts)}"


if __name__ == "__main__":
    run(lambda: print(answer(Path(sys.argv[1]))))
