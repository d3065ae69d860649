"""events.jsonl: what happened in a run, one JSON object a line, appended by every start of it."""

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

EVENTS = "events.jsonl"

Event = dict[str, Any]
"""`event` (its kind), `time`, and what belongs to the kind."""


class EventFile:
    """Appends events, each in one write, so that a killed run leaves at most one line that is not whole.

    Args:
        path: Made when absent; None writes nothing, as on ranks that do not speak.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None

    def write(self, kind: str, **facts: Any) -> None:
        """Append an event; a file that cannot be written is told once and never ends a run.

        Args:
            kind: Of the event.
            **facts: What JSON can hold, without NaN.
        """
        if self._path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": kind, "time": now, **facts}, allow_nan=False) + "\n"
        try:
            if self._descriptor is None:
                self._descriptor = _opened(self._path)
            os.write(self._descriptor, line.encode())
        except OSError as error:
            path, self._path = self._path, None
            log.warning("%s: %s; no more events are written", path, error.strerror)

    def close(self) -> None:
        """Write no more."""
        self._path = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_events(path: Path) -> list[Event]:
    """Read what was written, without lines that are not whole.

    Args:
        path: Need not exist.

    Returns:
        Events in the order of writing.
    """
    if not path.is_file():
        return []
    found = map(_decoded, path.read_bytes().splitlines())
    return [event for event in found if isinstance(event, dict) and isinstance(event.get("event"), str)]


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _opened(path: Path) -> int:
    """Open the file for appending, behind a line feed where a killed run left a line without one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")
    return descriptor
