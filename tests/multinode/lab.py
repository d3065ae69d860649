"""Hosts on one machine: each is a set of Linux namespaces with an sshd, a name, a home and a cable to a common switch.

Nothing outlives the processes that hold the namespaces: no interface, name or mount is left in the machine's own. A
host needs process numbers of its own, because launchers end processes by their command lines.
"""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

NEEDED = ("unshare", "nsenter", "setpriv", "ip", "ssh", "ssh-keygen", "nft", "ps", "/usr/sbin/sshd")
_NETWORK = "10.91.7"
_SECONDS = 20.0
_INIT = """
set -e
mount --make-rprivate /
hostname {name}
for what in passwd hosts; do mount --bind {folder}/$what /etc/$what; done
mount --bind {folder}/disk /mnt
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
touch {folder}/ready
while :; do sleep 1000 & wait $!; done
"""
_SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/home/.ssh/id.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
"""


def obstacle() -> str | None:
    """Say why there can be no hosts here, or None."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root"
    line = "ip link add br0 type bridge && mount -t tmpfs none /mnt"
    words = ["unshare", "-nmuip", "--fork", "--kill-child", "--mount-proc", "sh", "-c", line]
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"namespaces: {tried.stderr.strip()}" if tried.returncode else None


class Lab:
    """Some hosts, h0 and so on."""

    def __init__(self, folder: Path, num_hosts: int = 2) -> None:
        self.folder = folder
        self.addresses = {f"h{number}": f"{_NETWORK}.{number + 1}" for number in range(num_hosts)}
        self._switch: tuple[subprocess.Popen[bytes], int] | None = None
        self._hosts: dict[str, tuple[subprocess.Popen[bytes], int]] = {}

    def __enter__(self) -> Self:
        self._switch = _held(["-n", "--fork", "--kill-child"], ["sleep", "infinity"])
        self._at_switch("link add br0 type bridge")
        self._at_switch("link set br0 up")
        known = [self._furnish(name) for name in self.addresses]
        for name in self.addresses:
            self.home(name).joinpath(".ssh/known_hosts").write_text("".join(known))
            self.power_on(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._hosts):
            self.power_off(name)
        if self._switch:
            _end(self._switch[0])

    def home(self, name: str) -> Path:
        return self.folder / name / "home"

    def power_on(self, name: str) -> None:
        folder = self.folder / name
        (folder / "ready").unlink(missing_ok=True)
        init = _INIT.format(name=name, folder=shlex.quote(str(folder)))
        self._hosts[name] = _held(["-nmuip", "--fork", "--kill-child", "--mount-proc"], ["bash", "-c", init])
        assert self._switch is not None
        inside = self._hosts[name][1]
        _wait((folder / "ready").exists, f"{name} does not boot")
        switch = self._switch[1]
        # The same after a reboot, as real cards have it: others remember it for a while.
        card = f"02:00:00:00:00:{list(self.addresses).index(name):02x}"
        _run(*f"ip link add p-{name} netns {switch} type veth peer eth0 address {card} netns {inside}".split())
        self._at_switch(f"link set p-{name} master br0 up")
        self.root(name, f"ip addr add {self.addresses[name]}/24 dev eth0 && ip link set eth0 up && ip link set lo up")
        self.root(name, f"/usr/sbin/sshd -f {folder}/sshd_config -E {folder}/sshd.log")

    def power_off(self, name: str) -> None:
        """End a host at once, as a power cut does."""
        _end(self._hosts.pop(name)[0])

    def cut(self, name: str) -> None:
        """Pull a host's cable."""
        self._at_switch(f"link set p-{name} down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        self._at_switch(f"link set p-{name} up")

    def root(self, name: str, line: str) -> None:
        """Change a host: a shell line, which must succeed."""
        done = subprocess.run(self._inside(name, ["sh", "-c", line]), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {line}: {done.stderr}"

    def run(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        seconds: float = 120.0,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as somebody who has logged in."""
        return subprocess.run(
            self._as_user(name, words, environment, cwd),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(
        self, name: str, words: Sequence[str], environment: Mapping[str, str], *, log: Path, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command as somebody who has logged in."""
        with log.open("wb") as stream:
            return subprocess.Popen(
                self._as_user(name, words, environment, cwd),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self, name: str, what: str) -> list[tuple[int, str]]:
        """List the processes of a host whose command line holds something: number there, command line."""
        done = subprocess.run(
            self._inside(name, ["ps", "-ewwo", "pid=,args="]), capture_output=True, text=True, check=True
        )
        found = [line.split(None, 1) for line in done.stdout.splitlines()]
        return [(int(words[0]), words[1]) for words in found if len(words) == 2 and what in words[1]]

    def _furnish(self, name: str) -> str:
        """Make a host's files; give its line of known_hosts."""
        folder, key = self.folder / name, self.folder / "id"
        for inner in ("home/.ssh", "disk"):
            (folder / inner).mkdir(parents=True)
        if not key.exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
        shutil.copy(key, folder / "home/.ssh/id_ed25519")
        shutil.copy(key.with_suffix(".pub"), folder / "home/.ssh/id.pub")
        entries = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
        mine = [[*entry[:5], f"{folder}/home", "/bin/bash"] if entry[0] == "root" else entry for entry in entries]
        (folder / "passwd").write_text("".join(f"{':'.join(entry)}\n" for entry in mine))
        names = "".join(f"{address} {host}\n" for host, address in self.addresses.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
        kind, public = (folder / "host_key.pub").read_text().split()[:2]
        return f"{name},{self.addresses[name]} {kind} {public}\n"

    def _at_switch(self, words: str) -> None:
        assert self._switch is not None
        _run("nsenter", "-t", str(self._switch[1]), "-n", "ip", *words.split())

    def _inside(self, name: str, words: Sequence[str]) -> list[str]:
        return ["nsenter", "-t", str(self._hosts[name][1]), "-n", "-m", "-u", "-i", "-p", "--", *words]

    def _as_user(self, name: str, words: Sequence[str], environment: Mapping[str, str], cwd: Path | None) -> list[str]:
        variables = {
            "HOME": str(self.home(name)),
            "USER": "root",
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            **environment,
        }
        line = f"cd {shlex.quote(str(cwd or self.home(name)))} && exec {shlex.join(words)}"
        return self._inside(
            name, ["env", "-i", *(f"{key}={value}" for key, value in variables.items()), "bash", "-c", line]
        )


def _held(kinds: list[str], words: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process in new namespaces; give it, and the number of the one inside."""
    held = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", "unshare", *kinds, *words],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    children = Path(f"/proc/{held.pid}/task/{held.pid}/children")
    _wait(lambda: children.read_text().split(), "no namespaces")
    return held, int(children.read_text().split()[0])


def _end(held: subprocess.Popen[bytes]) -> None:
    """End what holds namespaces; the kernel then ends all inside."""
    held.send_signal(signal.SIGKILL)
    held.wait()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


def _wait(condition: Callable[[], object], told: str) -> None:
    until = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < until, told
        time.sleep(0.05)
