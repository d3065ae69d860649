"""What adapters can be combined with, told before anything is loaded."""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ds_sft.config.arguments import LoraArguments
from ds_sft.config.parse import Settings
from ds_sft.errors import ConfigError, DsSftError, MissingInputError
from ds_sft.model.adapter_files import read_adapter_config
from ds_sft.model.folder import ModelFolder, digest_of_model
from ds_sft.save.manifest import faults_of, read_manifest

_PARTITIONS_PARAMETERS = 3
_NEEDS_WHOLE_WEIGHTS = ("pissa", "olora")
_OF_THE_FILE = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_bias": "bias",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


def lora_faults(
    settings: Settings, *, folder: ModelFolder, deepspeed: Mapping[str, Any] | None
) -> Iterator[DsSftError]:
    """Hold the flags of adapters against each other, the engine and the files.

    Args:
        settings: As parsed.
        folder: The model.
        deepspeed: Content of the DeepSpeed file; None without one.

    Yields:
        One error for each fault.
    """
    lora = settings.lora
    if not lora.is_asked:
        yield from _left_alone(lora)
        return
    yield from _number_faults(lora)
    section = (deepspeed or {}).get("zero_optimization")
    stage = section.get("stage", 0) if isinstance(section, dict) else 0
    if stage == _PARTITIONS_PARAMETERS:
        yield from _partitioning_faults(lora)
    yield from _combination_faults(lora)
    if lora.lora_weight_path:
        yield from _continued_faults(lora, folder)


def _left_alone(lora: LoraArguments) -> Iterator[DsSftError]:
    """Refuse flags that would do nothing: whoever gives one wants adapters."""
    for entry in fields(lora):
        value = getattr(lora, entry.name)
        if value != entry.default:
            yield ConfigError(
                f"{entry.name}: needs --lora_r, but is {value} without it; add --lora_r 8, or leave it out"
            )


def _number_faults(lora: LoraArguments) -> Iterator[DsSftError]:
    if lora.lora_r is not None and lora.lora_r < 1:
        yield ConfigError(f"lora_r: must be at least 1, but is {lora.lora_r}; 8 to 64 are usual")
    if lora.lora_alpha < 1:
        yield ConfigError(
            f"lora_alpha: must be at least 1, but is {lora.lora_alpha}; one or two times the rank is usual"
        )
    if not 0 <= lora.lora_dropout < 1:
        yield ConfigError(f"lora_dropout: must be from 0 to below 1, but is {lora.lora_dropout}; 0.05 is usual")


def _partitioning_faults(lora: LoraArguments) -> Iterator[DsSftError]:
    if lora.q_lora:
        yield ConfigError(
            "q_lora: needs whole weights on every rank, but zero_optimization.stage is 3: DeepSpeed cannot partition "
            "packed 4-bit weights together with their scales; use ds_configs/zero2.json"
        )
    if lora.lora_init in _NEEDS_WHOLE_WEIGHTS:
        yield ConfigError(
            f"lora_init: {lora.lora_init} factors whole weights, but zero_optimization.stage is 3; use "
            "ds_configs/zero2.json, or leave it out"
        )


def _combination_faults(lora: LoraArguments) -> Iterator[DsSftError]:
    if lora.q_lora and importlib.util.find_spec("bitsandbytes") is None:
        yield ConfigError("q_lora: needs bitsandbytes, but it is not installed; pip install 'ds_sft[qlora]'")
    if lora.lora_init in _NEEDS_WHOLE_WEIGHTS and lora.q_lora:
        yield ConfigError(
            f"lora_init: {lora.lora_init} factors weights of full precision, but q_lora is True; drop one"
        )
    if lora.lora_init in _NEEDS_WHOLE_WEIGHTS and lora.use_dora:
        yield ConfigError(
            f"lora_init: {lora.lora_init} changes the frozen weights, whose lengths use_dora trains; drop one of them"
        )
    if lora.lora_init == "loftq" and not lora.q_lora:
        yield ConfigError("lora_init: loftq makes up for 4-bit weights, but q_lora is False; add --q_lora True")
    if lora.lora_init and lora.lora_weight_path:
        yield ConfigError(
            f"lora_init: must not be given with lora_weight_path, whose values count, but is {lora.lora_init}; drop one"
        )


def _continued_faults(lora: LoraArguments, folder: ModelFolder) -> Iterator[DsSftError]:
    path = Path(str(lora.lora_weight_path)).expanduser()
    if not path.is_dir():
        yield MissingInputError(f"lora_weight_path: folder must exist, but {path} does not; check the path")
        return
    content = read_adapter_config(path)
    defaults = {entry.name: entry.default for entry in fields(lora)}
    for name, stored in _OF_THE_FILE.items():
        asked = getattr(lora, name)
        if asked != defaults[name] and asked != content.get(stored):
            yield ConfigError(f"{name}: must be {content.get(stored)} as in {path}, but is {asked}; leave it out")
    yield from other_base_faults(path, folder, field="lora_weight_path")


def other_base_faults(adapter: Path, folder: ModelFolder, *, field: str) -> Iterator[DsSftError]:
    """Hold the fingerprint in an adapter's manifest against a model.

    Args:
        adapter: Folder of the adapter.
        folder: The model.
        field: For the message.

    Yields:
        One error when it was trained on another model; none where no manifest tells.
    """
    if faults_of(adapter, is_deep=False):
        return
    trained_on = read_manifest(adapter).facts.get("fingerprint", {}).get("model")
    if trained_on is not None and trained_on != digest_of_model(folder):
        yield ConfigError(
            f"{field}: {adapter} must have been trained on {folder.path}, but was trained on another model "
            f"(fingerprint {str(trained_on)[:12]}...); name that one"
        )
