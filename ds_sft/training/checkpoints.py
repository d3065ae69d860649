"""Saves a run's checkpoints and puts them back: what is in one, and what happens when a save fails."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState, set_seed

from ds_sft.errors import SaveError
from ds_sft.save.files import write_new_json
from ds_sft.save.staging import Disk, Written, publish, retain
from ds_sft.save.state import own_of, read_own, write_state
from ds_sft.training.random_state import random_state
from ds_sft.training.resume import Facts
from ds_sft.zero.state import is_replicated

log = logging.getLogger(__name__)

_RUN = "run.json"
_STATE = "trainer_state.json"
_FAILURES_IN_A_ROW = 3

Plain = dict[str, Any]
"""What JSON can hold."""


@dataclass(frozen=True)
class Parts:
    """What a checkpoint is made of.

    Args:
        model: Without the engine around it.
        optimizer: torch's, or DeepSpeed's around it.
        state: transformers' record of the run.
        shared: What all ranks know alike.
        own: What only this rank knows.
        export: Writes the model for inference into a folder, with all ranks, and tells what this rank wrote.
        world_size: Number of ranks.
        is_resumable: Whether weights and optimizer are kept beside the export.
    """

    model: nn.Module
    optimizer: Any
    state: TrainerState
    shared: Plain
    own: Plain
    export: Callable[[Path], Written]
    world_size: int
    is_resumable: bool


class Checkpoints:
    """The checkpoints of one run, and how often saving failed.

    Args:
        disk: Of this rank.
        facts: Of the run.
        keep: How many checkpoints stay; None for all.
        stops_at_once: Whether the first save that fails ends the run.
    """

    def __init__(self, disk: Disk, facts: Facts, *, keep: int | None, stops_at_once: bool) -> None:
        self.disk = disk
        self.facts = facts
        self._keep = keep
        self._most_failures = 1 if stops_at_once else _FAILURES_IN_A_ROW
        self._failures = 0

    def save(self, parts: Parts) -> bool:
        """Publish a checkpoint; every rank must call this.

        Args:
            parts: What it holds.

        Returns:
            Whether it is there.

        Raises:
            SaveError: When the disk has failed too often in a row.
            NumericsError: When a number is not finite.
        """
        step = parts.state.global_step
        facts = {**self.facts, "resumable": parts.is_resumable}
        try:
            folder = publish(self.disk, step=step, facts=facts, write=partial(self._write, parts))
        except SaveError as error:
            self._failures += 1
            if self._failures >= self._most_failures:
                raise
            log.warning(
                "step %d is not saved (%d of %d failures in a row that end the run), the last checkpoint stays: %s",
                *(step, self._failures, self._most_failures, error),
            )
            return False
        self._failures = 0
        best = parts.state.best_model_checkpoint
        try:
            retain(self.disk, step=step, newest=self._keep, best=Path(best) if best else None)
        except SaveError as error:
            log.warning("old checkpoints stay: %s", error)
        log.info("%s is saved", folder)
        return True

    def _write(self, parts: Parts, staging: Path) -> Written:
        # First, because every rank takes part in it, whatever else fails.
        written = dict(parts.export(staging))
        if self.disk.is_leader:
            written[_STATE] = write_new_json(staging / _STATE, without_nan(asdict(parts.state)))
            written[_RUN] = write_new_json(staging / _RUN, without_nan(parts.shared))
        if not parts.is_resumable:
            return written
        return written | write_state(
            staging,
            model=parts.model,
            optimizer=parts.optimizer,
            own={"random": random_state(), **without_nan(parts.own)},
            rank=self.disk.rank,
            world_size=parts.world_size,
            has_weights=self.disk.is_leader or not is_replicated(parts.optimizer),
        )


def read_shared(checkpoint: Path) -> Plain:
    """Read what all ranks knew alike.

    Args:
        checkpoint: Whole, as its manifest says.

    Returns:
        Plain data.
    """
    content: Plain = json.loads((checkpoint / _RUN).read_text(encoding="utf-8"))
    return content


def own_part(checkpoint: Path, *, rank: int, world_size: int, seed: int) -> Plain:
    """Read what this rank alone knew; where other ranks wrote the checkpoint, give it its part of what they knew.

    Args:
        checkpoint: Whole, as its manifest says.
        rank: Of this process.
        world_size: Number of ranks.
        seed: Of the run; random numbers begin anew from it on another number of ranks.

    Returns:
        `random` (None where generators were seeded instead), `loss` and `tokens`.
    """
    own = own_of(checkpoint, rank=rank, world_size=world_size)
    if own is not None:
        return own
    known = read_own(checkpoint)
    mean = sum(part["loss"] for part in known) / len(known)
    sums = [sum(counts) for counts in zip(*(part["tokens"] for part in known), strict=True)]
    set_seed(seed + int(checkpoint.name.rsplit("-", 1)[-1]) + rank)
    return {"random": None, "loss": mean, "tokens": sums if rank == 0 else [0] * len(sums)}


def without_nan(content: Any) -> Any:
    """Give plain data with null for every number that is not finite, since JSON has no word for those.

    Args:
        content: Plain data.

    Returns:
        The same, changed where needed.
    """
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
