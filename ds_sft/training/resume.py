"""Decides where a run goes on: from the newest whole checkpoint of the same run, or not at all."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ds_sft import __version__
from ds_sft.config.parse import Settings
from ds_sft.errors import ConfigError, DsSftError, MissingInputError, ModelError, raise_together
from ds_sft.model.folder import ModelFolder, digest_of_model
from ds_sft.reporting import rank
from ds_sft.save.manifest import MANIFEST, faults_of, is_resumable, read_manifest
from ds_sft.save.staging import Disk, checkpoints_of, clear, newest_whole, verify
from ds_sft.training.step import asked_batch, step_facts
from ds_sft.zero.distributed import world_size
from ds_sft.zero.ranks import together

log = logging.getLogger(__name__)

Facts = dict[str, Any]
"""What a run is: `fingerprint` must be the same when it goes on, `versions` should be."""

_SETTINGS = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("label_smoothing_factor", "bf16", "fp16", "seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last"),
    "packing",
)
_DATA = ("data", "tokenizer", "family", "layout", "num_data")
_PACKAGES = ("torch", "transformers", "deepspeed", "accelerate")
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
    facts = run_facts(settings, folder=folder, data=data, world_size=world_size()) | {"asked": asked_batch(asked)}
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
        world_size: Number of ranks; only what a step takes depends on it.

    Returns:
        Plain data for the manifest of a checkpoint.
    """
    training = settings.training
    fingerprint = {
        "model": digest_of_model(folder),
        **{name: data[name] for name in _DATA},
        **step_facts(training, world_size=world_size),
        **{name: _plain(training[name]) for name in _SETTINGS},
        ADAPTERS: asdict(settings.lora) if settings.lora.is_asked else None,
    }
    versions = {"ds_sft": __version__, "code": data["code"], **{name: version(name) for name in _PACKAGES}}
    return {"fingerprint": fingerprint, "versions": versions}


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
    if says_no(asked):
        return None
    if asked is None or says_yes(asked):
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
    if says_no(settings.training["resume_from_checkpoint"]) or faults_of(folder, is_deep=False):
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
    if says_no(asked):
        if found:
            yield ConfigError(
                f"resume_from_checkpoint: must not be False where checkpoints are, but {found[0][1]} is there; leave "
                "it out to go on, or name another output_dir"
            )
    elif asked is None or says_yes(asked):
        yield from _nothing_to_resume(settings.output_dir, found, is_asked=asked is not None)
    elif not (Path(asked).expanduser() / MANIFEST).is_file():
        yield MissingInputError(
            f"resume_from_checkpoint: must be a folder with {MANIFEST}, but {asked} is not; name checkpoint-N"
        )
    elif found and Path(asked).expanduser().resolve() in [path.resolve() for _, path in found[1:]]:
        yield ConfigError(
            f"resume_from_checkpoint: must be the newest of its folder, but {asked} is older than {found[0][1]}, "
            "from which the run would go on after a stop; move the newer ones away, or name another output_dir"
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


def says_no(asked: str | None) -> bool:
    """Tell whether a run must begin anew.

    Args:
        asked: `resume_from_checkpoint`.

    Returns:
        True where that is False.
    """
    return asked is not None and asked.lower() == "false"


def says_yes(asked: str) -> bool:
    """Tell whether there must be a checkpoint, of which none was named.

    Args:
        asked: `resume_from_checkpoint`.

    Returns:
        True where that is True.
    """
    return asked.lower() == "true"


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
