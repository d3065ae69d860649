"""What adapters can be combined with, told before anything is loaded."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from ds_sft.config.arguments import LoraArguments
from ds_sft.config.parse import Settings
from ds_sft.errors import ConfigError, DsSftError, MissingInputError, ModelError
from ds_sft.model.adapter_config import MOST_RANK, AdapterConfig, TrainedOn, read_adapter_config, trained_on
from ds_sft.model.folder import ModelFolder, digest_of_model
from ds_sft.model.quantisation import missing_package
from ds_sft.save.manifest import MANIFEST, faults_of, read_manifest
from ds_sft.zero.settings import partitions_parameters

log = logging.getLogger(__name__)

_CHANGES_WEIGHTS = ("pissa", "olora")
_NEEDS_WHOLE_WEIGHTS = (*_CHANGES_WEIGHTS, "eva")


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
    if partitions_parameters(deepspeed or {}):
        yield from _partitioning_faults(lora)
    yield from _combination_faults(lora)
    if lora.lora_weight_path is not None:
        yield from _continued_faults(settings, folder)


def _left_alone(lora: LoraArguments) -> Iterator[DsSftError]:
    """Refuse flags that would do nothing: whoever gives one wants adapters."""
    for entry in fields(lora):
        value = getattr(lora, entry.name)
        if value != entry.default:
            yield ConfigError(
                f"{entry.name}: needs --lora_r, but is {value} without it; add --lora_r 8, or leave it out"
            )


def _number_faults(lora: LoraArguments) -> Iterator[DsSftError]:
    if lora.lora_r is not None and not 1 <= lora.lora_r <= MOST_RANK:
        rule = "at least 1" if lora.lora_r < 1 else f"at most {MOST_RANK}"
        yield ConfigError(f"lora_r: must be {rule}, but is {lora.lora_r}; 8 to 64 are usual")
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
            f"lora_init: {lora.lora_init} needs whole weights, but zero_optimization.stage is 3; use "
            "ds_configs/zero2.json, or leave it out"
        )


def _combination_faults(lora: LoraArguments) -> Iterator[DsSftError]:
    if lora.q_lora:
        yield from missing_package()
    if lora.lora_init in _NEEDS_WHOLE_WEIGHTS and lora.q_lora:
        yield ConfigError(f"lora_init: {lora.lora_init} needs weights of full precision, but q_lora is True; drop one")
    if lora.lora_init in _CHANGES_WEIGHTS and lora.use_dora:
        yield ConfigError(
            f"lora_init: {lora.lora_init} changes the frozen weights, whose lengths use_dora trains; drop one of them"
        )
    if lora.lora_init == "loftq" and not lora.q_lora:
        yield ConfigError("lora_init: loftq makes up for 4-bit weights, but q_lora is False; add --q_lora True")
    if lora.lora_init and lora.lora_weight_path:
        yield ConfigError(
            f"lora_init: must not be given with lora_weight_path, whose values count, but is {lora.lora_init}; drop one"
        )


def _continued_faults(settings: Settings, folder: ModelFolder) -> Iterator[DsSftError]:
    lora = settings.lora
    path = Path(str(lora.lora_weight_path)).expanduser()
    if not path.is_dir():
        yield MissingInputError(f"lora_weight_path: folder must exist, but {path} does not; check the path")
        return
    try:
        stored, run = _of_file(read_adapter_config(path)), run_of(path)
    except DsSftError as error:
        yield error
        return
    for entry in fields(lora):
        asked = getattr(lora, entry.name)
        if entry.name not in stored or _is_same(asked, stored[entry.name]):
            continue
        told = shortened(stored[entry.name])
        if asked != entry.default:
            yield ConfigError(f"{entry.name}: must be {told} as in {path}, but is {asked}; leave it out")
        elif asked is not None:
            log.warning("%s: %s -> %s, as in %s", entry.name, asked, stored[entry.name], path)
    if run is not None:
        yield from _other_base_faults(path, run, folder)
        yield from _other_holding_faults(path, run, settings)


def _is_same(asked: Any, stored: Any) -> bool:
    """Compare a flag with a file; the order of modules says nothing."""
    return bool(asked == stored or (isinstance(asked, list) and sorted(asked) == stored))


def _of_file(config: AdapterConfig) -> dict[str, Any]:
    """Give what an adapter decides of its continuation, by the names of the flags."""
    targets = config.target_modules
    return {
        "lora_r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "lora_bias": config.bias,
        "lora_target_modules": [targets] if isinstance(targets, str) else sorted(targets),
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
    }


def run_of(adapter: Path) -> TrainedOn | None:
    """Read the manifest of an adapter.

    Args:
        adapter: Its folder.

    Returns:
        The run that trained it; None where there is no manifest, as in the folders of plain peft.

    Raises:
        ModelError: When the manifest, or what it lists, is broken.
    """
    if not (adapter / MANIFEST).exists():
        return None
    faults = faults_of(adapter, is_deep=False)
    if faults:
        raise ModelError(f"{adapter}: must be whole, but {faults[0]}; copy it again")
    return trained_on(read_manifest(adapter).facts, where=adapter)


def _other_base_faults(adapter: Path, run: TrainedOn, folder: ModelFolder) -> Iterator[DsSftError]:
    if run.model != digest_of_model(folder):
        yield ConfigError(
            f"lora_weight_path: {adapter} must have been trained on {folder.path}, but was trained on another model "
            f"(fingerprint {run.model[:12]}...); name that one"
        )


def _other_holding_faults(adapter: Path, run: TrainedOn, settings: Settings) -> Iterator[DsSftError]:
    """Refuse other bits of the frozen model: what the adapter learnt makes up for what those bits lose."""
    is_quantised, is_bf16 = settings.lora.q_lora, bool(settings.training["bf16"])
    if is_quantised != run.is_quantised:
        yield ConfigError(
            f"q_lora: must be {run.is_quantised} as in the run of {adapter}, but is {is_quantised}; give "
            f"--q_lora {run.is_quantised}"
        )
    elif is_quantised and is_bf16 != run.bf16:
        yield ConfigError(
            f"bf16: must be {run.bf16} as in the run of {adapter}, whose 4 bits were made from that, but is {is_bf16}; "
            f"give --bf16 {run.bf16}"
        )
