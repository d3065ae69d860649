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
_READ_BYTES = 1 << 16
_EXIT_CANNOT_START = 66
_EXIT_STOOD_STILL = 69
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
    """A launcher with its ranks.

    Args:
        job: `command`, `cwd`, `variables`, `patience_seconds`, `stop_seconds`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._patience_seconds = float(job["patience_seconds"])
        self._stop_seconds = float(job["stop_seconds"])
        self._ends_at: float | None = None
        self._stopped_since: dict[int, float] = {}
        self._looked_at = 0.0
        self.launcher = subprocess.Popen(
            job["command"], cwd=job["cwd"], env={**os.environ, **job["variables"]},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._pump = threading.Thread(target=_pump, args=(self.launcher,), daemon=True)
        self._pump.start()

    def watch(self, ear: Ear) -> int:
        """Wait for the end.

        Args:
            ear: Of this agent.

        Returns:
            The exit code for the supervisor.
        """
        code = None
        while code is None and self.launcher.poll() is None:
            time.sleep(_POLL_SECONDS)
            code = self._look(ear)
        end_all()
        self._pump.join(_LAST_WORDS_SECONDS)
        return code if code is not None else self.launcher.wait() % 256

    def _look(self, ear: Ear) -> int | None:
        """Do what the time has come for; give an exit code when the part must end now."""
        now = time.monotonic()
        if ear.stop_seconds is not None:
            self._stop(now + ear.stop_seconds)
            ear.stop_seconds = None
        if self._ends_at is None and (ear.has_gone or now - ear.last_heard > self._patience_seconds):
            _say("supervisor: must be heard, but is silent; asking the ranks to save and leave")
            self._stop(now + self._stop_seconds)
        if self._ends_at is not None and now >= self._ends_at:
            return _EXIT_STOOD_STILL
        return self._look_for_stopped(now)

    def _stop(self, ends_at: float) -> None:
        if self._ends_at is None:
            for rank in children_of(self.launcher.pid):
                _send(rank, signal.SIGTERM)
        self._ends_at = ends_at if self._ends_at is None else min(ends_at, self._ends_at)

    def _look_for_stopped(self, now: float) -> int | None:
        if now - self._looked_at < _LOOK_SECONDS:
            return None
        self._looked_at = now
        stopped = [process for process in descendants() if _state(process) in ("T", "t")]
        self._stopped_since = {process: self._stopped_since.get(process, now) for process in stopped}
        for process, since in self._stopped_since.items():
            if now - since >= self._patience_seconds:
                _say(f"error: ranks: must run, but process {process} is stopped for {now - since:.0f} s; why?")
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


def _pump(launcher: "subprocess.Popen[bytes]") -> None:
    """Pass on what the job says; ranks must never feel that nobody reads it any more."""
    assert launcher.stdout is not None  # noqa: S101  # it is a pipe
    while piece := os.read(launcher.stdout.fileno(), _READ_BYTES):
        with suppress(OSError):
            while piece:
                piece = piece[os.write(1, piece) :]


def _say(line: str) -> None:
    with suppress(OSError):
        os.write(1, f"{line}\n".encode())
