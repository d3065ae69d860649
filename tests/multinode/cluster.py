"""What tests do with hosts: run ds-sft there, wait for what it says, and look who is left."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.multinode.lab import Lab

STEPS = 16
_SECONDS = 240.0
_LEFT = ("python", "deepspeed", "torchrun", "pdsh")


@dataclass(frozen=True)
class Ended:
    """How a command ended, what it said, and how long it took."""

    code: int
    text: str
    seconds: float

    def faults(self) -> list[str]:
        """Give the lines of a doctor that say what is wrong."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("✗ ")]


@dataclass(frozen=True)
class Running:
    """A command that runs on the first host."""

    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, told: str, *, after: str = "") -> None:
        """Wait until it has said something, behind the last place of something else."""

        def is_told() -> bool:
            return told in (self.text().rpartition(after)[2] if after else self.text())

        _wait(lambda: is_told() or self.process.poll() is not None, f"no {told!r}", self)
        assert is_told(), self.text()[-4000:]

    def end(self, seconds: float = _SECONDS) -> Ended:
        """Wait for its end."""
        began = time.monotonic()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on after {seconds} s\n{self.text()[-4000:]}") from None
        return Ended(code, self.text(), time.monotonic() - began)


class Cluster:
    """Hosts h0 and h1, and a hostfile that names them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hostfile = lab.folder / "hostfile"
        self.hostfile.write_text("h0 slots=1\nh1 slots=1\n")
        self.environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
        self._running: list[Running] = []

    def doctor(self, *words: str, hostfile: Path | None = None) -> Ended:
        """Run the quick doctor for both hosts."""
        began = time.monotonic()
        done = self.lab.run(
            "h0", [*_verb("doctor"), "--quick", "--hostfile", str(hostfile or self.hostfile), *words], self.environment
        )
        return Ended(done.returncode, done.stdout, time.monotonic() - began)

    def launch(self, *words: str) -> Running:
        """Start a job on both hosts."""
        return self.start("h0", [*_verb("launch"), "--hostfile", str(self.hostfile), *words])

    def start(self, host: str, words: list[str], **more: str) -> Running:
        """Start any command."""
        log = self.lab.folder / f"log-{len(self._running)}"
        process = self.lab.start(host, words, self.environment | more, log=log, cwd=self.lab.folder)
        self._running.append(Running(process, log))
        return self._running[-1]

    def clear(self) -> None:
        """End whatever a test has left."""
        for host in self.lab.addresses:
            for number, _ in self.left(host):
                self.lab.root(host, f"kill -KILL {number} || true")
        for running in self._running:
            running.process.kill()
            running.process.wait()

    def rank(self, host: str) -> int:
        """Give the process of the host's rank, as numbers are outside."""
        inside = [found for found, line in self.lab.processes(host, "train.py") if "deepspeed.launcher" not in line]
        assert len(inside) == 1, self.lab.processes(host, "")
        return inside[0]

    def signal_rank(self, host: str, name: str) -> None:
        self.lab.root(host, f"kill -{name} {self.rank(host)}")

    def wait_until_nobody_is_left(self, seconds: float = 60.0) -> None:
        """Wait until no host has a process of the job."""
        until = time.monotonic() + seconds
        while left := [one for host in self.lab.addresses for one in self.left(host)]:
            assert time.monotonic() < until, left
            time.sleep(0.2)

    def left(self, host: str) -> list[tuple[int, str]]:
        return [
            one for what in _LEFT for one in self.lab.processes(host, what) if "sshd:" not in one[1] and one[0] != 1
        ]


def losses(output: Path) -> list[float]:
    """Give the losses of a run's log, by step."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


def bin_of_this_python() -> Path:
    return Path(sys.executable).absolute().parent


def _verb(name: str) -> list[str]:
    return [sys.executable, "-m", "ds_sft.cli", name]


def _wait(condition: Callable[[], bool], told: str, running: Running) -> None:
    until = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < until, f"{told}\n{running.text()[-4000:]}"
        time.sleep(0.05)
