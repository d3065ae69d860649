"""Starts a job's parts on all hosts, passes on what they say, and ends all of them when one fails."""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from signal import Signals

from ds_sft import errors
from ds_sft.hosts.remote import EXIT_OF_SSH, Remote
from ds_sft.visible import visible

log = logging.getLogger(__name__)

_AGENT = ("ds_sft.hosts.agent",)
_BEAT_SECONDS = 5.0
_POLL_SECONDS = 0.2
_SETTLE_SECONDS = 4.0
"""When one host fails, others fail of it; the one that knows why may need this long to say so."""
_FAULT_STOP_SECONDS = 4.0
_KILL_SECONDS = 10.0
_LEAST_OF_SIGNALS = 128
_ALL_CODES = 256
_RAISED = re.compile(r"[\w.]*(?:Error|Exception)\b.*")
_ERROR_LINE = re.compile(r"(?:\[rank \d+ host \S+\] )?error: (.+)")
_KNOWN = frozenset(code for name, code in vars(errors).items() if name.startswith("EXIT_"))
_GO_ON = frozenset({errors.EXIT_PREEMPTED, errors.EXIT_LAUNCH})


@dataclass(frozen=True)
class Task:
    """What one host does.

    Args:
        host: Its name.
        command: Words of one rank.
        variables: Added to the environment there.
        ranks: Their numbers.
        world_size: Number of all ranks.
    """

    host: str
    command: tuple[str, ...]
    variables: Mapping[str, str]
    ranks: tuple[int, ...]
    world_size: int


@dataclass(frozen=True)
class Patience:
    """How long to wait.

    Args:
        silence_seconds: For a host that says nothing, or a rank that is stopped.
        stop_seconds: For ranks that were asked to save and leave.
    """

    silence_seconds: int
    stop_seconds: int


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        code: For our own exit; 0 when all went well.
        told: Host and reason, in one line.
        is_worth_another_try: Whether the same command may go on: hosts or ranks were lost, or asked to leave.
    """

    code: int
    told: str
    is_worth_another_try: bool


def supervise(
    tasks: Sequence[Task], *, python: str, cwd: str, patience: Patience, is_stop_asked: Callable[[], bool]
) -> Outcome:
    """Run a job to its end.

    Args:
        tasks: One a host, the first one with rank zero.
        python: Interpreter on all hosts.
        cwd: Folder on all hosts.
        patience: How long to wait.
        is_stop_asked: Whether the job shall save and leave.

    Returns:
        How it ended; no process of it is left on any host that can be reached.
    """
    parts = [
        _Part(task, is_first=place == 0, python=python, cwd=cwd, patience=patience) for place, task in enumerate(tasks)
    ]
    try:
        _watch(parts, patience, is_stop_asked)
        return _outcome([part for part in parts if part.code])
    finally:
        for part in parts:
            part.close()


class _Part:
    """A host's agent as the supervisor sees it."""

    def __init__(self, task: Task, *, is_first: bool, python: str, cwd: str, patience: Patience) -> None:
        self.host = task.host
        self.code: int | None = None
        self.ended_at = 0.0
        self.is_told_to_stop = False
        self.reason = ""
        self._raised = ""
        self._prefix = "" if is_first else f"{task.host}: "
        self._patience = patience
        self.remote = Remote(task.host, _AGENT, python=python, patience_seconds=patience.silence_seconds)
        limits = {"patience_seconds": patience.silence_seconds, "stop_seconds": patience.stop_seconds}
        self.remote.send(asdict(task) | limits | {"cwd": cwd})
        self._speaker = threading.Thread(target=self._pass_on, daemon=True)
        self._speaker.start()

    def look(self) -> int | None:
        """Find out whether it has ended."""
        if self.code is None and (code := self.remote.process.poll()) is not None:
            self._speaker.join(1.0)
            self.code = code % _ALL_CODES
            self.ended_at = time.monotonic()
            self.reason = self._told()
        return self.code

    def close(self) -> None:
        self.remote.close()

    def _pass_on(self) -> None:
        # It is closed under us when the host does not answer.
        with suppress(ValueError, OSError):
            for raw in self.remote.outlet():
                self._hear(visible(raw.decode(errors="replace").rstrip("\r\n")))

    def _hear(self, line: str) -> None:
        told = _ERROR_LINE.match(line)
        if told and not self.reason:
            self.reason = told[1]
        elif _RAISED.fullmatch(line):
            self._raised = line
        sys.stderr.write(f"{self._prefix}{line}\n")
        sys.stderr.flush()

    def _told(self) -> str:
        if self.code == EXIT_OF_SSH:
            words = self.remote.last_words().removeprefix("ssh: ")
            return f"ssh: {words or f'no sign of life for {self._patience.silence_seconds} s'}"
        if self.code and self.code > _LEAST_OF_SIGNALS and not self.reason:
            return f"a rank was killed by {_signal_name(self.code)}"
        return self.reason or self._raised or self.remote.last_words() or f"ended with code {self.code}"


def _watch(parts: Sequence[_Part], patience: Patience, is_stop_asked: Callable[[], bool]) -> None:
    beaten_at = 0.0
    failed_at: float | None = None
    ends_at: float | None = None
    is_told = False
    while left := [part for part in parts if part.look() is None]:
        now = time.monotonic()
        if now - beaten_at >= _BEAT_SECONDS:
            beaten_at = now
            _tell(left, {})
        if failed_at is None and any(part.code for part in parts):
            failed_at = now
        if not is_told and is_stop_asked():
            is_told = True
            _tell(left, {"stop": patience.stop_seconds})
            ends_at = now + patience.stop_seconds + _KILL_SECONDS
        if failed_at is not None and now - failed_at >= _settle_seconds(parts, patience):
            failed_at = float("inf")
            _tell(left, {"stop": _FAULT_STOP_SECONDS})
            ends_at = now + _FAULT_STOP_SECONDS + _KILL_SECONDS
        if ends_at is not None and now >= ends_at:
            return
        time.sleep(_POLL_SECONDS)


def _settle_seconds(parts: Sequence[_Part], patience: Patience) -> float:
    """Give the others the time to save where they were asked to, and else only that to say why."""
    is_orderly = all(part.code in (None, 0, errors.EXIT_PREEMPTED) for part in parts)
    return patience.stop_seconds if is_orderly else _SETTLE_SECONDS


def _tell(parts: Sequence[_Part], content: dict[str, float]) -> None:
    for part in parts:
        part.is_told_to_stop = part.is_told_to_stop or "stop" in content
        part.remote.send(content)


def _outcome(failed: Sequence[_Part]) -> Outcome:
    if not failed:
        return Outcome(0, "", is_worth_another_try=False)
    # Who was told to stop ended of that; who lost a connection or a rank knows more than who cannot reach others.
    causes = [part for part in failed if not part.is_told_to_stop] or failed
    worst = min(causes, key=lambda part: (_distance_from_cause(part), part.ended_at))
    code = worst.code or 0
    is_lost = code == EXIT_OF_SSH or code > _LEAST_OF_SIGNALS
    ours = code if code in _KNOWN else errors.EXIT_LAUNCH
    return Outcome(
        ours, f"{worst.host}: {worst.reason}", is_worth_another_try=is_lost or (ours in _GO_ON and code in _GO_ON)
    )


def _distance_from_cause(part: _Part) -> int:
    code = part.code or 0
    if code == EXIT_OF_SSH:
        return 0
    if code > _LEAST_OF_SIGNALS:
        return 1
    return {errors.EXIT_PREEMPTED: 3, errors.EXIT_LAUNCH: 4}.get(code, 2)


def _signal_name(code: int) -> str:
    # As a shell tells it, and as Python's own exit codes do.
    number = code - _LEAST_OF_SIGNALS if code < _LEAST_OF_SIGNALS + max(Signals) else _ALL_CODES - code
    return Signals(number).name if number in {one.value for one in Signals} else f"signal {number}"
