"""Orderly stops: a signal, or a launcher that has gone, asks the process to leave with a code that says "go on later".

Until the training loop begins there is nothing to lose, and the process leaves at once. From then on the first signal
is only noted: the ranks agree on a step, save and leave. A second one leaves at once.
"""

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from ds_sft.errors import EXIT_PREEMPTED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Of schedulers and launchers, of the keyboard, and of Slurm's --signal=USR1@SECONDS."""
LAUNCHER_HAS_GONE = "the launcher has gone"

# Ctrl-C reaches the whole group, and the launcher then sends SIGTERM to what it started: that is one wish.
_REPEAT_SECONDS = 1.0
_POLL_SECONDS = 0.5
_LAST_WORDS_SECONDS = 1.0
_DEEPSPEED_LAUNCHER = ("deepspeed.launcher.launch", "launcher/launch.py")
_END = b"\0"
_GO_ON = "the same command goes on from the last checkpoint"

_Handler = Callable[[int, FrameType | None], Any] | int


class StopRequest:
    """Notes that this process was asked to stop; one for each process.

    A thread does all the work, because the main thread may be inside a collective that never returns.

    Args:
        grace_seconds: Longest life after the launcher has gone, when nobody is left to kill a rank that hangs.
    """

    def __init__(self, *, grace_seconds: float = 120.0) -> None:
        self._grace_seconds = grace_seconds
        self._reason: str | None = None
        self._is_deferred = False
        self._phase = threading.Lock()
        self._signalled_at: float | None = None
        self._leaves_at: float | None = None
        self._launcher: _Launcher | None = None
        self._replaced: dict[signal.Signals, _Handler] = {}
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self._replaced_pipe = -1

    @property
    def reason(self) -> str | None:
        """Who asked first, as in `SIGTERM` or `the launcher has gone`; None as long as nobody did."""
        return self._reason

    def install(self) -> None:
        """Listen from now on; call it early, before anything slow is imported.

        Raises:
            AssertionError: When it is installed already.
            ValueError: When this is not the main thread, which alone may handle signals.
        """
        if self._pipe is not None:
            raise AssertionError("a stop request is installed once")
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._replaced_pipe = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._pipe = reader, writer
        self._launcher = _Launcher.find()
        self._thread = threading.Thread(target=self._listen, args=(reader,), name="stop-request", daemon=True)
        self._thread.start()
        os.register_at_fork(after_in_child=self._forget)
        for number in SIGNALS:
            found = signal.getsignal(number)
            # A shell without job control lets its background jobs ignore the keyboard. The other two are often ignored
            # on purpose, `trap '' USR1`, so that launchers survive what is meant for the ranks.
            if number != signal.SIGINT or found != signal.SIG_IGN:
                self._replaced[number] = signal.SIG_DFL if found is None else found
                signal.signal(number, _leave_it_to_the_thread)

    def uninstall(self) -> None:
        """Stop listening and put back what was there; nothing happens where nothing is installed."""
        if self._pipe is None or self._thread is None:
            return
        reader, writer = self._pipe
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._replaced_pipe)
        os.write(writer, _END)
        self._thread.join()
        os.close(reader)
        os.close(writer)
        self._replaced, self._pipe, self._thread = {}, None, None

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    def defer(self) -> None:
        """Say that there is something to lose from now on: a request is noted, and the caller looks at `reason`."""
        with self._phase:
            self._is_deferred = True

    def _listen(self, reader: int) -> None:
        while True:
            is_readable, _, _ = select.select([reader], [], [], _POLL_SECONDS)
            for number in os.read(reader, select.PIPE_BUF) if is_readable else b"":
                if number == _END[0]:
                    return
                # Other handlers' signals, such as SIGCHLD, arrive here too.
                if number in self._replaced:
                    self._on_signal(signal.Signals(number).name)
            self._look_after_launcher()

    def _on_signal(self, name: str) -> None:
        now = time.monotonic()
        if self._signalled_at is not None and now - self._signalled_at >= _REPEAT_SECONDS:
            _leave(f"run: must be left alone until its work is saved, but {name} came again; {_GO_ON}")
        if self._signalled_at is None:
            self._signalled_at = now
            self._ask(name)

    def _look_after_launcher(self) -> None:
        now = time.monotonic()
        if self._launcher is not None and self._launcher.has_gone():
            self._launcher = None
            self._leaves_at = now + self._grace_seconds
            self._ask(LAUNCHER_HAS_GONE)
        if self._leaves_at is not None and now >= self._leaves_at:
            _leave(f"run: must end within {self._grace_seconds:g} s after its launcher, but did not; {_GO_ON}")

    def _ask(self, reason: str) -> None:
        with self._phase:
            if not self._is_deferred:
                _leave(f"run: {reason} before training began; nothing is lost, the same command begins again")
            if self._reason is None:
                self._reason = reason
                _say(f"run: {reason}; leaving as soon as the work is saved, and at once when asked again")

    def _forget(self) -> None:
        """Be no part of a forked process: its parent decides for both, but SIGTERM ends it as ever."""
        if self._pipe is None:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._replaced.items():
            # Ctrl-C and Slurm reach workers too. One that died of it would take the parent down before it can save.
            signal.signal(number, handler if number == signal.SIGTERM else signal.SIG_IGN)
        for end in self._pipe:
            os.close(end)
        self._replaced, self._pipe, self._thread = {}, None, None


def stay_for_parent(_worker: int) -> None:
    """Let a worker of a DataLoader outlive SIGTERM, as its `worker_init_fn`.

    launch.py and schedulers send SIGTERM to every process, and a parent whose workers are gone cannot finish its step.
    The parent ends them with `end_children`; if it is killed, they find out within 5 s.

    Args:
        _worker: Its number.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_children() -> None:
    """End the workers that `multiprocessing` started, as those of a DataLoader; call it before `os._exit`.

    Otherwise they would live until they look for their parent, every 5 s.
    """
    for child in multiprocessing.active_children():
        child.kill()


@dataclass(frozen=True)
class _Launcher:
    """The process that started this rank.

    Args:
        process: Its number.
        starter: Of deepspeed's launch.py, the process that started it: `deepspeed` itself, which may die alone.
    """

    process: int
    starter: int | None

    @classmethod
    def find(cls) -> Self | None:
        """Find it, or None for a process without a launcher that can be lost."""
        process = os.getppid()
        if "RANK" not in os.environ or process == 1:
            return None
        return cls(process, _starter_of(process))

    def has_gone(self) -> bool:
        if os.getppid() != self.process:
            return True
        return self.starter is not None and self.starter != _parent_and_group_of(self.process)[0]


def _starter_of(process: int) -> int | None:
    try:
        command = Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    starter, group = _parent_and_group_of(process)
    # A launch.py that leads its own group is a shell's job or a session, and those may outlive who started them.
    is_of_deepspeed = any(part.endswith(_DEEPSPEED_LAUNCHER) for part in command.split("\0"))
    return starter if is_of_deepspeed and group != process else None


def _parent_and_group_of(process: int) -> tuple[int, int]:
    """Give a process's parent and group, or zeros when it has gone."""
    try:
        told = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0, 0
    # The second field is a name in brackets that may hold anything.
    _, parent, group = told.rpartition(")")[2].split()[:3]
    return int(parent), int(group)


def _leave_it_to_the_thread(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the number of the signal is already in the pipe."""


def _leave(line: str) -> NoReturn:
    try:
        _say(line)
        end_children()
    finally:
        os._exit(EXIT_PREEMPTED)


def _say(line: str) -> None:
    """Write a line, but not longer than it takes: who reads it may have gone, or hold up the main thread."""
    speaker = threading.Thread(target=_write, args=(line,), daemon=True)
    # No thread starts when the limit of processes is reached, or when the interpreter is on its way out.
    with suppress(RuntimeError):
        speaker.start()
        speaker.join(_LAST_WORDS_SECONDS)


def _write(line: str) -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            # In one piece: the other ranks write too.
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
