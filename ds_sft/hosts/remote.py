"""A Python program on a host, started over ssh (or directly where that is this host) and fed through its stdin."""

import json
import os
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from ds_sft.errors import LaunchError
from ds_sft.hosts.addresses import address_of, is_own
from ds_sft.visible import visible

_BEAT_SECONDS = 5
_SSH = (
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR"),
    *("-o", f"ServerAliveInterval={_BEAT_SECONDS}"),
)
# The host may lack our package: the modules come over stdin, and the last one is run.
_BOOT = (
    "import json,sys,types\n"
    "for n,s in json.loads(sys.stdin.readline()):\n"
    " m=types.ModuleType(n);sys.modules[n]=m;exec(compile(s,n,'exec'),m.__dict__)\n"
    "m.main()"
)
EXIT_OF_SSH = 255
_READ_BYTES = 1 << 16
_PARTING_SECONDS = 5.0


class Remote:
    """A program on a host.

    Args:
        host: Its name, as in a hostfile.
        modules: Names of the modules that are sent; `main()` of the last one is called.
        python: The interpreter on that host.
        patience_seconds: How long the host may be silent before it counts as lost.
    """

    def __init__(self, host: str, modules: Sequence[str], *, python: str, patience_seconds: int = 20) -> None:
        self.host = host
        command = [python, "-u", "-c", _BOOT]
        alive = f"ServerAliveCountMax={max(1, patience_seconds // _BEAT_SECONDS)}"
        # What ssh itself or the shell there says, and nothing else: the programs answer on stdout.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the program
        self.process = subprocess.Popen(
            command if is_here(host) else [*_SSH, "-o", alive, "--", host, shlex.join(command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Ctrl-C is for us: we decide how the hosts end.
            start_new_session=True,
        )
        self._left = b""
        self.send([[name, source_of(name)] for name in modules])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, content: Any) -> bool:
        """Send one line of JSON.

        Args:
            content: Plain values.

        Returns:
            Whether somebody was there to take it.
        """
        assert self.process.stdin is not None  # noqa: S101  # it is a pipe
        try:
            self.process.stdin.write(f"{json.dumps(content)}\n".encode())
            self.process.stdin.flush()
        except OSError:
            return False
        return True

    def ask(self, do: str, *, seconds: float, **arguments: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer.

        Args:
            do: Name of the act.
            seconds: It may take.
            **arguments: Of the act.

        Returns:
            The answer.

        Raises:
            LaunchError: When there is none, with the host's own reason.
        """
        self.send({"do": do, **arguments})
        until = time.monotonic() + seconds
        while b"\n" not in self._left:
            if not self._read(until):
                raise LaunchError(f"{self.host}: {self.reason(seconds)}")
        line, _, self._left = self._left.partition(b"\n")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            told = visible(line[:80].decode(errors="replace"))
            raise LaunchError(
                f"{self.host}: a login must print nothing, but it prints {told!r}; mend the shell's start-up files"
            ) from error
        return answer

    def reason(self, seconds: float) -> str:
        """Tell why there is no answer, in the words of ssh or of the host.

        Args:
            seconds: That were waited.

        Returns:
            One line.
        """
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return f"no answer within {seconds:g} s"
        last = self.last_words()
        if code == EXIT_OF_SSH:
            return f"ssh: {last.removeprefix('ssh: ') or 'the connection was lost'}"
        return last or f"ended with code {code}"

    def last_words(self) -> str:
        """Give the last line that ssh, the shell there or a dying Python wrote.

        Returns:
            One line; empty when they wrote nothing.
        """
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        return visible(next((line.strip() for line in reversed(lines) if line.strip()), ""))

    def outlet(self) -> Any:
        """Give the stream of what the program prints."""
        return self.process.stdout

    def close(self) -> None:
        """End it: it gets the end of stdin, and SIGKILL when that is not enough."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    # Bytes were left for somebody who has gone.
                    continue
        try:
            self.process.wait(_PARTING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()

    def _read(self, until: float) -> bool:
        assert self.process.stdout is not None  # noqa: S101  # it is a pipe
        ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))
        piece = os.read(self.process.stdout.fileno(), _READ_BYTES) if ready else b""
        self._left += piece
        return bool(piece)


def is_here(host: str) -> bool:
    """Tell whether a host is this one, so that no ssh is needed.

    Args:
        host: Its name.

    Returns:
        Whether it is; False for a name without an address, which ssh may know all the same.
    """
    try:
        return is_own(address_of(host))
    except LaunchError:
        return False


def source_of(module: str) -> str:
    """Read the source of a module.

    Args:
        module: Its full name.

    Returns:
        The text.
    """
    found = find_spec(module)
    if found is None or found.origin is None:
        raise AssertionError(f"{module} is one of our modules")
    return Path(found.origin).read_text(encoding="utf-8")


def this_python() -> str:
    """Name the interpreter that hosts must have too.

    Returns:
        Its absolute path, links kept: a virtual environment is found by it.
    """
    return str(Path(sys.executable).absolute())
