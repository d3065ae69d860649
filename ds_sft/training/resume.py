"""Decides where a run goes on: from the newest whole checkpoint of the same run, or not at all."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ds_sft import __version__
from ds_sft.config.parse import Settings
from ds_sft.errors import ConfigError, DsSftError, MissingInputError, ModelError, raise_together
from ds_sft.model.folder import ModelFolder, digest_of_model
from ds_sft.reporting import rank
from ds_sft.save.manifest import MANIFEST, Manifest, faults_of, is_resumable, read_manifest
from ds_sft.save.staging import Disk, checkpoints_of, clear, newest_whole, verify
from ds_sft.zero.distributed import world_size
from ds_sft.zero.ranks import together

log = logging.getLogger(__name__)

Facts = dict[str, Any]
"""What a run is: `fingerprint` must be the same when it goes on, `versions` should be."""

_SETTINGS = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("label_smoothing_factor", "bf16", "fp16", "seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last"),
)
_DATA = ("data", "tokenizer", "family", "layout", "num_data")
_PACKAGES = ("torch", "transformers", "deepspeed", "accelerate")
_GLOBAL_BATCH = "samples of a step"
ADAPTERS = "adapters"


@dataclass(frozen=True)
class Begin:
    """Where a run begins.

    Args:
        disk: Of this rank.
        facts: Of the run.
        checkpoint: That it goes on from; None from the beginning.
        is_finished: Whether nothing is left to do.
    """

    disk: Disk
    facts: Facts
    checkpoint: str | None
    is_finished: bool


def where_to_begin(settings: Settings, *, asked: Settings, folder: ModelFolder, data: Mapping[str, str]) -> Begin:
    """Find out where a run begins, and clear away what an interrupted one has left; every rank must call this.

    Args:
        settings: As they are used.
        asked: As parsed.
        folder: The model it begins with.
        data: What decides the samples, by name.

    Returns:
        The same on every rank, but for the disk.
    """
    disk = Disk.find(settings.output_dir)
    clear(disk)
    facts = run_facts(settings, folder=folder, data=data, world_size=world_size()) | {"asked": _asked_batch(asked)}
    # Rank zero alone exports, so it alone knows.
    is_done = together(lambda: rank() == 0 and is_finished(settings, facts=facts))[0]
    checkpoint = None if is_done else checkpoint_to_resume(settings, disk=disk, facts=facts)
    return Begin(disk, facts, str(checkpoint) if checkpoint else None, is_done)


def run_facts(settings: Settings, *, folder: ModelFolder, data: Mapping[str, str], world_size: int) -> Facts:
    """Give what a run is.

    Args:
        settings: As they are used.
        folder: The model it begins with.
        data: What decides the samples, by name.
        world_size: Number of ranks; only the number of samples of a step depends on it.

    Returns:
        Plain data for the manifest of a checkpoint.
    """
    training = settings.training
    fingerprint = {
        "model": digest_of_model(folder),
        **{name: data[name] for name in _DATA},
        _GLOBAL_BATCH: _samples_of_a_step(training, world_size),
        **{name: _plain(training[name]) for name in _SETTINGS},
        ADAPTERS: asdict(settings.lora) if settings.lora.is_asked else None,
    }
    versions = {"ds_sft": __version__, "code": data["code"], **{name: version(name) for name in _PACKAGES}}
    return {"fingerprint": fingerprint, "versions": versions}


def fitted_to_checkpoint(settings: Settings, *, world_size: int) -> Settings:
    """Keep the number of samples of a step when a run goes on with another number of ranks.

    Args:
        settings: As parsed.
        world_size: Number of ranks now.

    Returns:
        The same, or with another micro-batch and accumulation; each change is told.
    """
    stored = _stored_run(settings)
    training = settings.training
    # On as many ranks as before, another batch is another run, and refused as such; unless the flags are those that the
    # run began with, and it was fitted to other ranks since.
    if stored is None or (stored.world_size == world_size and stored.facts.get("asked") != _asked_batch(settings)):
        return settings
    wanted = stored.facts["fingerprint"][_GLOBAL_BATCH]
    if wanted == _samples_of_a_step(training, world_size) or wanted % world_size:
        return settings
    share = wanted // world_size
    largest = min(share, training["per_device_train_batch_size"])
    micro = next(size for size in range(largest, 0, -1) if share % size == 0)
    changes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}
    for name, value in changes.items():
        if training[name] != value:
            log.warning(
                "%s: %s -> %s, because the checkpoint has %d samples a step: %d micro x %d accumulate x %d ranks",
                *(name, training[name], value, wanted, micro, share // micro, world_size),
            )
    return replace(settings, training={**training, **changes})


def checkpoint_to_resume(settings: Settings, *, disk: Disk, facts: Facts) -> Path | None:
    """Find the checkpoint that a run goes on from; every rank must call this.

    Args:
        settings: As parsed.
        disk: Of this rank.
        facts: Of the run now.

    Returns:
        Its folder, or None for a run that begins.

    Raises:
        ModelError: When the checkpoint that was named is not whole.
        MissingInputError: When one must be there, but is not.
        ConfigError: When it belongs to another run.
    """
    asked = settings.training["resume_from_checkpoint"]
    if _says_no(asked):
        return None
    if asked is None or _says_yes(asked):
        found = newest_whole(disk)
        if found is None and (asked is not None or checkpoints_of(disk.folder)):
            raise MissingInputError(
                f"resume_from_checkpoint: there must be a whole checkpoint, but {disk.folder} has none; remove what is "
                "left of them, or name another output_dir, to start from the beginning"
            )
    else:
        found = Path(asked).expanduser()
        faults = verify(disk, found)
        if faults:
            raise ModelError(f"resume_from_checkpoint: {found} must be whole, but {faults[0]}; name another checkpoint")
        if not is_resumable(found):
            raise ModelError(
                f"resume_from_checkpoint: {found} must hold the training state, but holds the model only; name another "
                "checkpoint"
            )
    if found is not None:
        refuse_another_run(found, facts, is_allowed=settings.training["allow_resume_mismatch"])
        log.info("going on from %s", found)
    return found


def refuse_another_run(checkpoint: Path, facts: Facts, *, is_allowed: bool) -> None:
    """Hold a run against the manifest of the checkpoint it goes on from.

    Args:
        checkpoint: With a manifest.
        facts: Of the run now.
        is_allowed: Whether a run that differs goes on all the same, with a warning.

    Raises:
        ConfigError: With one line for each difference.
    """
    stored = read_manifest(checkpoint).facts
    lines = [
        f"{name}: must be {_shown(old)} as in {checkpoint}, but is {_shown(new)}"
        for name, old, new in _differences(stored.get("fingerprint", {}), facts["fingerprint"])
    ]
    if lines and not is_allowed:
        raise_together(
            [
                ConfigError(f"{line}; change it back, name another output_dir, or add --allow_resume_mismatch True")
                for line in lines
            ]
        )
    for line in lines:
        log.warning("%s; going on, as allow_resume_mismatch says", line)
    for name, old, new in _differences(stored.get("versions", {}), facts["versions"]):
        log.warning("%s: %s when the checkpoint was written, %s now", name, _shown(old), _shown(new))


def is_finished(settings: Settings, *, facts: Facts) -> bool:
    """Tell whether the output folder holds the whole export of this very run.

    Args:
        settings: As parsed.
        facts: Of the run now.

    Returns:
        True when there is nothing left to do.

    Raises:
        ConfigError: When it is the export of another run.
    """
    folder = settings.output_dir
    if _says_no(settings.training["resume_from_checkpoint"]) or faults_of(folder, is_deep=False):
        return False
    is_allowed = settings.training["allow_resume_mismatch"]
    refuse_another_run(folder, facts, is_allowed=is_allowed)
    return bool(read_manifest(folder).facts.get("fingerprint") == facts["fingerprint"])


def resume_faults(settings: Settings) -> Iterator[DsSftError]:
    """Check what can be known before any process group: whether the flag fits what lies there.

    Args:
        settings: As parsed.

    Yields:
        One error for each fault.
    """
    asked = settings.training["resume_from_checkpoint"]
    found = checkpoints_of(settings.output_dir)
    if _says_no(asked):
        if found:
            yield ConfigError(
                f"resume_from_checkpoint: must not be False where checkpoints are, but {found[0][1]} is there; leave "
                "it out to go on, or name another output_dir"
            )
    elif asked is None or _says_yes(asked):
        yield from _nothing_to_resume(settings.output_dir, found, is_asked=asked is not None)
    elif not (Path(asked).expanduser() / MANIFEST).is_file():
        yield MissingInputError(
            f"resume_from_checkpoint: must be a folder with {MANIFEST}, but {asked} is not; name checkpoint-N"
        )
    elif found and Path(asked).expanduser().resolve() in [path.resolve() for _, path in found[1:]]:
        yield ConfigError(
            f"resume_from_checkpoint: must be the newest of its folder, but {asked} is older than {found[0][1]}; move "
            "the newer ones away, or name another output_dir"
        )


def _nothing_to_resume(folder: Path, found: list[tuple[int, Path]], *, is_asked: bool) -> Iterator[DsSftError]:
    if found and not any((path / MANIFEST).is_file() for _, path in found):
        yield MissingInputError(
            f"resume_from_checkpoint: a checkpoint must have {MANIFEST}, but none in {folder} has: other versions or "
            "programs wrote them; name another output_dir"
        )
    elif is_asked and not found:
        yield MissingInputError(
            f"resume_from_checkpoint: there must be a checkpoint to resume, but {folder} has none; leave the flag out "
            "to start from the beginning"
        )


def _says_no(asked: str | None) -> bool:
    return asked is not None and asked.lower() == "false"


def _says_yes(asked: str) -> bool:
    return asked.lower() == "true"


def _samples_of_a_step(training: Mapping[str, Any], world_size: int) -> int:
    size = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * world_size
    return int(size)


def _asked_batch(settings: Settings) -> list[int]:
    return [settings.training["per_device_train_batch_size"], settings.training["gradient_accumulation_steps"]]


def _stored_run(settings: Settings) -> Manifest | None:
    """Give the manifest of the checkpoint that is probably gone on from, if it tells the samples of a step."""
    asked = settings.training["resume_from_checkpoint"]
    if _says_no(asked):
        return None
    named = asked is not None and not _says_yes(asked)
    here = [*(path for _, path in checkpoints_of(settings.output_dir)), settings.output_dir]
    folders = [Path(asked).expanduser()] if named else here
    for folder in folders:
        if not faults_of(folder, is_deep=False):
            manifest = read_manifest(folder)
            is_told = isinstance(manifest.facts.get("fingerprint", {}).get(_GLOBAL_BATCH), int)
            return manifest if is_told else None
    return None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _shown(value: Any) -> str:
    text = repr(value)
    is_digest = isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
    return f"{text[:13]}...'" if is_digest else text
