"""Does on another host what it is asked: looks, listens, connects. The source is sent there: standard library only.

It reads one JSON object a line, `{"do": NAME, ...}`, and answers each with one; it ends when nobody asks any more.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_sft.hosts.looking import Answer, look, nearest

_CONNECT_SECONDS = 4.0

_listeners: list[socket.socket] = []


def listen(*, port: int) -> Answer:
    """Listen on a port of all addresses until `hush`.

    Args:
        port: 0 for any.

    Returns:
        The port, or -1 and the fault.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        return {"port": -1, "fault": error.strerror or str(error)}
    _listeners.append(listener)
    return {"port": listener.getsockname()[1], "fault": ""}


def hush() -> Answer:
    """Stop listening.

    Returns:
        Nothing.
    """
    while _listeners:
        _listeners.pop().close()
    return {}


def connect(*, places: list[list[Any]]) -> Answer:
    """Try to reach listeners.

    Args:
        places: Name or address, and port, of each.

    Returns:
        The fault of each, empty for one that answered.
    """
    return {"faults": [_connected(host, port) for host, port in places]}


def mark(*, path: str) -> Answer:
    """Make an empty file.

    Args:
        path: That does not exist.

    Returns:
        The fault, empty when it is there.
    """
    try:
        Path(path).touch(exist_ok=False)
    except OSError as error:
        return {"fault": error.strerror or str(error)}
    return {"fault": ""}


def see(*, path: str, wait_seconds: float) -> Answer:
    """Tell whether a file is there.

    Args:
        path: Of the file.
        wait_seconds: Patience with network file systems, which show new files late.

    Returns:
        Whether it is.
    """
    until = time.monotonic() + wait_seconds
    while not (is_there := Path(path).exists()) and time.monotonic() < until:
        # Listing makes some network file systems ask their server again.
        list(nearest(Path(path).parent).iterdir())
        time.sleep(0.1)
    return {"is_there": is_there}


def unmark(*, path: str) -> Answer:
    """Remove a file that `mark` made.

    Args:
        path: Of the file.

    Returns:
        Nothing.
    """
    Path(path).unlink(missing_ok=True)
    return {}


def start(*, program: str, variables: dict[str, str], limit_seconds: float) -> Answer:
    """Run a Python program to its end.

    Args:
        program: Its source.
        variables: Added to the environment.
        limit_seconds: It may take.

    Returns:
        Its exit code, its last line on stdout and on stderr.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **variables}, capture_output=True, text=True, timeout=limit_seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"code": -1, "out": "", "err": f"no answer within {limit_seconds:g} s"}
    return {"code": done.returncode, "out": _last_line(done.stdout), "err": _last_line(done.stderr)}


ACTS: dict[str, Callable[..., Answer]] = {
    act.__name__: act for act in (look, listen, hush, connect, mark, see, unmark, start)
}


def main() -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(f"{json.dumps(ACTS[asked.pop('do')](**asked))}\n")
        sys.stdout.flush()


def _connected(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
