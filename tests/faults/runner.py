"""Runs a job on several ranks of which some meet a fault of the file system, and tells how each rank ended."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import shim
from tests.ranks import Ending, Result, rank_ends, start_server


@dataclass(frozen=True)
class Fault:
    """What happens below a folder.

    Args:
        folder: Operations on it and below it are counted, on every rank by itself, from the job's start.
        at: The operation that meets the fault, from 1; with 0 nothing fails.
        mode: What it meets.
        ranks: The ranks that meet it; the others are only counted and logged.
        log: Every rank appends its operations to a file of its own; see `log_of`.
    """

    folder: Path
    at: int = 0
    mode: shim.Mode = shim.Mode.KILL
    ranks: tuple[int, ...] = (0,)
    log: Path | None = None


def log_of(fault: Fault, rank: int) -> Path:
    """Give the file to which a rank logs; `shim.read_log` reads it."""
    assert fault.log is not None
    return fault.log.with_name(f"{fault.log.name}.{rank}")


class FaultyRanks:
    """A fork server under crashfs, as long as this process lives.

    Args:
        library: From `shim.build`.
    """

    def __init__(self, library: Path) -> None:
        others = os.environ.get("LD_PRELOAD")
        self._server = start_server(LD_PRELOAD=f"{library}:{others}" if others else str(library))

    def __call__(
        self,
        job: Callable[..., Result],
        *arguments: Any,
        world_size: int,
        fault: Fault | None = None,
        patience_seconds: float = 1.0,
    ) -> list[Result | Ending]:
        """Run `job(*arguments)` once on each rank.

        Args:
            job: A function of an importable module; what it returns must be picklable.
            *arguments: Picklable.
            world_size: Number of ranks.
            fault: What the ranks meet.
            patience_seconds: How long the others may run on once one rank has ended badly: so long until SIGTERM, and
                so long again until SIGKILL.

        Returns:
            By rank: what its job returned, or how else it ended.
        """
        return rank_ends(
            *(_armed, fault, job, arguments),
            world_size=world_size,
            patience_seconds=patience_seconds,
            server=self._server,
        )


def _armed(fault: Fault | None, job: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    if fault is None:
        return job(*arguments)
    rank = int(os.environ["RANK"])
    log = None if fault.log is None else log_of(fault, rank)
    if log is not None:
        log.write_bytes(b"")  # not what an earlier run has left
    shim.arm(fault.folder, fault.at if rank in fault.ranks else 0, fault.mode, log=log)
    try:
        return job(*arguments)
    finally:
        shim.disarm()
