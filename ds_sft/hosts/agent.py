"""Runs a job's part on one host for a supervisor elsewhere, and lets nothing outlive either. Standard library only.

The first line on stdin is the job; every later one is a sign of life, or `{"stop": SECONDS}`: ask the ranks to save and
leave, and end them after so many seconds. Silence, and the end of stdin, mean that the supervisor has gone.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0
_EXIT_CANNOT_START = 66
_EXIT_STOOD_STILL = 69
_EXIT_PREEMPTED = 75
_SETTLE_SECONDS = 3.0
_LAST_WORDS_SECONDS = 2.0


class Ear:
    """Hears the supervisor; `last_heard` and `stop_seconds` are written by its thread only."""

    def __init__(self) -> None:
        self.last_heard = time.monotonic()
        self.has_gone = False
        self.stop_seconds: float | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self.last_heard = time.monotonic()
            told = json.loads(line)
            if "stop" in told:
                self.stop_seconds = float(told["stop"])
        self.has_gone = True


class Part:
    """The ranks of this host.

    Args:
        job: `command`, `cwd`, `variables`, `ranks`, `world_size`, `patience_seconds`, `stop_seconds`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._patience_seconds = float(job["patience_seconds"])
        self._stop_seconds = float(job["stop_seconds"])
        self._ends_at: float | None = None
        self._is_asked = False
        self._stopped_since: dict[int, float] = {}
        self._looked_at = 0.0
        self._ranks = {rank: _start(job, rank, place) for place, rank in enumerate(job["ranks"])}
        self._pumps = [_pumped(process) for process in self._ranks.values()]

    def watch(self, ear: Ear) -> int:
        """Wait for the end.

        Args:
            ear: Of this agent.

        Returns:
            The exit code for the supervisor.
        """
        code = None
        while code is None and any(process.poll() is None for process in self._ranks.values()):
            time.sleep(_POLL_SECONDS)
            code = self._look(ear, time.monotonic())
        codes = {rank: process.poll() for rank, process in self._ranks.items()}
        if not self._is_asked:
            _tell_killed(codes)
        end_all()
        for pump in self._pumps:
            pump.join(_LAST_WORDS_SECONDS)
        # Who dies of our own request has neither saved nor failed.
        excused = -signal.SIGTERM if self._is_asked else 0
        ended = [_EXIT_STOOD_STILL if found == excused else found for found in codes.values() if found]
        return min(ended, key=_distance_from_cause, default=code or 0) % 256

    def _look(self, ear: Ear, now: float) -> int | None:
        """Do what the time has come for; give an exit code when the part must end now."""
        if ear.stop_seconds is not None:
            self._ask_to_stop(now + ear.stop_seconds)
            ear.stop_seconds = None
        if self._ends_at is None and (ear.has_gone or now - ear.last_heard > self._patience_seconds):
            _say("supervisor: must be heard, but is silent; asking the ranks to save and leave")
            self._ask_to_stop(now + self._stop_seconds)
        codes = {process.poll() for process in self._ranks.values()} - {None, 0}
        if codes:
            # After a fault the others wait for a rank that does not come; a short while is for what they say.
            is_orderly = codes == {_EXIT_PREEMPTED}
            self._end_by(now + (self._stop_seconds if is_orderly else _SETTLE_SECONDS))
        if self._ends_at is not None and now >= self._ends_at:
            return _EXIT_STOOD_STILL
        return self._look_for_stopped(now)

    def _ask_to_stop(self, ends_at: float) -> None:
        if self._ends_at is None:
            self._is_asked = True
            for process in self._ranks.values():
                process.send_signal(signal.SIGTERM)
        self._end_by(ends_at)

    def _end_by(self, ends_at: float) -> None:
        self._ends_at = ends_at if self._ends_at is None else min(ends_at, self._ends_at)

    def _look_for_stopped(self, now: float) -> int | None:
        if now - self._looked_at < _LOOK_SECONDS:
            return None
        self._looked_at = now
        stopped = [process for process in descendants() if _state(process) in ("T", "t")]
        self._stopped_since = {process: self._stopped_since.get(process, now) for process in stopped}
        for process, since in self._stopped_since.items():
            if now - since >= self._patience_seconds:
                _say(f"error: ranks: must run, but process {process} is stopped for {now - since:.0f} s; who did that?")
                return _EXIT_STOOD_STILL
        return None


def main() -> None:
    """Run the job that stands on stdin, and leave with its exit code."""
    # What a rank has started stays ours when the rank is gone.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    job = json.loads(sys.stdin.readline())
    ear = Ear()
    try:
        part = Part(job)
    except OSError as error:
        _say(f"error: {error.filename}: {error.strerror}; it must be on every host")
        os._exit(_EXIT_CANNOT_START)
    code = part.watch(ear)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    # Not sys.exit: the ear may be waiting for a line.
    os._exit(code)


def end_all() -> None:
    """Kill whatever descends from this process, until nothing is left."""
    while left := descendants():
        for process in left:
            _send(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = [process for process in descendants() if _state(process) != "Z"]
        if not left:
            return
        time.sleep(_POLL_SECONDS)


def descendants() -> list[int]:
    """List all processes that descend from this one.

    Returns:
        Their numbers.
    """
    found = children_of(os.getpid())
    for process in found:
        found += children_of(process)
    return found


def children_of(process: int) -> list[int]:
    """List the children of a process.

    Args:
        process: Its number.

    Returns:
        Their numbers; none for a process that has gone.
    """
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text(encoding="ascii").split()]
    return found


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _start(job: dict[str, Any], rank: int, place: int) -> "subprocess.Popen[bytes]":
    named = {
        "RANK": rank, "LOCAL_RANK": place, "WORLD_SIZE": job["world_size"],
        "LOCAL_SIZE": len(job["ranks"]), "LOCAL_WORLD_SIZE": len(job["ranks"]),
    }  # fmt: skip
    return subprocess.Popen(
        job["command"],
        cwd=job["cwd"],
        env=os.environ | job["variables"] | {name: str(value) for name, value in named.items()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _pumped(process: "subprocess.Popen[bytes]") -> threading.Thread:
    pump = threading.Thread(target=_pump, args=(process,), daemon=True)
    pump.start()
    return pump


def _pump(process: "subprocess.Popen[bytes]") -> None:
    """Pass on whole lines; ranks must never feel that nobody reads them any more."""
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    for line in process.stdout:
        with suppress(OSError):
            os.write(1, line if line.endswith(b"\n") else line + b"\n")


def _tell_killed(codes: dict[int, int | None]) -> None:
    for rank, code in codes.items():
        if code is not None and code < 0:
            guess = " (out of memory?)" if code == -signal.SIGKILL else ""
            _say(f"error: ranks: must live, but rank {rank} was killed by {signal.Signals(-code).name}{guess}")


def _distance_from_cause(code: int) -> int:
    """A killed rank is a cause; one that cannot reach the others, or was asked to stop, feels it only."""
    return 0 if code < 0 else 2 if code in (_EXIT_PREEMPTED, _EXIT_STOOD_STILL) else 1


def _say(line: str) -> None:
    with suppress(OSError):
        os.write(1, f"{line}\n".encode())
