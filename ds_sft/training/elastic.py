"""Keeps what a step takes when a run goes on with another number of ranks."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_sft.config.parse import Settings
from ds_sft.save.manifest import Manifest, faults_of, read_manifest
from ds_sft.save.staging import checkpoints_of
from ds_sft.training.resume import says_no, says_yes
from ds_sft.training.step import MICRO_BATCHES, SAMPLES, asked_batch, step_facts

log = logging.getLogger(__name__)

_MICRO_BATCH, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


def fitted_to_checkpoint(settings: Settings, *, world_size: int) -> Settings:
    """Keep the samples of a step, or with packing its micro-batches, when a run goes on with other ranks.

    Args:
        settings: As parsed.
        world_size: Number of ranks now.

    Returns:
        The same, or with another accumulation and, without packing, another micro-batch; each change is told.
    """
    training = settings.training
    what = MICRO_BATCHES if training["packing"] else SAMPLES
    stored = _stored_run(settings, what)
    # On as many ranks as before, another batch is another run, and refused as such; unless the flags are those that the
    # run began with, and it was fitted to other ranks since.
    if stored is None or (stored.world_size == world_size and stored.facts.get("asked") != asked_batch(settings)):
        return settings
    wanted = stored.facts["fingerprint"][what]
    if wanted == step_facts(training, world_size=world_size)[what]:
        return settings
    if wanted % world_size:
        log.warning("the checkpoint has %d %s, which %d ranks cannot share evenly", wanted, what, world_size)
        return settings
    changes, equation = _split(wanted, training, world_size)
    for name, value in changes.items():
        if training[name] != value:
            log.warning(
                *("%s: %s -> %s, because the checkpoint has %d %s a step: %s", name, training[name], value),
                *(wanted, what.split(maxsplit=1)[0], equation),
            )
    return replace(settings, training={**training, **changes})


def _split(wanted: int, training: Mapping[str, Any], world_size: int) -> tuple[dict[str, int], str]:
    """Give the flags with which so many ranks make such a step, and their equation."""
    share = wanted // world_size
    if training["packing"]:
        return {_ACCUMULATION: share}, f"{share} accumulate x {world_size} ranks"
    largest = min(share, training[_MICRO_BATCH])
    micro = next(size for size in range(largest, 0, -1) if share % size == 0)
    equation = f"{micro} micro x {share // micro} accumulate x {world_size} ranks"
    return {_MICRO_BATCH: micro, _ACCUMULATION: share // micro}, equation


def _stored_run(settings: Settings, what: str) -> Manifest | None:
    """Give the manifest of the checkpoint that is probably gone on from, if it tells what a step takes."""
    asked = settings.training["resume_from_checkpoint"]
    if says_no(asked):
        return None
    named = asked is not None and not says_yes(asked)
    here = [*(path for _, path in checkpoints_of(settings.output_dir)), settings.output_dir]
    folders = [Path(asked).expanduser()] if named else here
    for folder in folders:
        if not faults_of(folder, is_deep=False):
            manifest = read_manifest(folder)
            is_told = isinstance(manifest.facts.get("fingerprint", {}).get(what), int)
            return manifest if is_told else None
    return None
