"""An adapter on disk in peft's form: its settings, and its tensors put into a living model."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from ds_sft.errors import MissingInputError, ModelError, raise_together
from ds_sft.model.folder import read_json, refuse_links_out
from ds_sft.model.lora import Adapters

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KNOWN = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "use_dora"),
    *("rank_pattern", "alpha_pattern"),
)
_MUST_BE_EMPTY = ("modules_to_save", "exclude_modules", "layers_to_transform", "megatron_config", "fan_in_fan_out")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the settings of an adapter; nothing that it names is imported.

    Args:
        folder: Of the adapter.

    Returns:
        Content of adapter_config.json.

    Raises:
        MissingInputError: When there is none.
        ModelError: When it is not LoRA, or uses a part of it that is not ours.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise MissingInputError(f"{folder}: must hold {CONFIG}, but does not; name the folder of an adapter")
    refuse_links_out(folder)
    content = read_json(file)
    if content.get("peft_type") != "LORA":
        raise ModelError(f"{file}: peft_type must be LORA, but is {content.get('peft_type')!r}; train it with peft")
    raise_together(
        [
            ModelError(f"{file}: {name} must be empty, but is {content[name]!r}; go on with it in peft")
            for name in _MUST_BE_EMPTY
            if content.get(name)
        ]
    )
    missing = [name for name in ("r", "lora_alpha", "target_modules") if not content.get(name)]
    if missing:
        raise ModelError(f"{file}: {missing[0]} must be there, but is not; restore the file")
    return content


def config_of(content: dict[str, Any]) -> LoraConfig:
    """Put the settings of an adapter in peft's words.

    Args:
        content: Of adapter_config.json.

    Returns:
        The config of adapters that begin at zero.
    """
    return LoraConfig(**{name: content[name] for name in _KNOWN if content.get(name) is not None})


def load_adapter(adapters: Adapters, folder: Path) -> None:
    """Give adapters the values of a file.

    Args:
        adapters: Of the same shape; not partitioned yet.
        folder: Of the adapter.

    Raises:
        ModelError: When a tensor is missing, left over or of another shape, each by name.
    """
    living, stored = adapters.tensors(), adapter_tensors(folder)
    rows = set(adapters.row_names())
    if rows and not rows & set(stored):
        log.warning("%s: has no rows of new tokens, so they begin at the mean of the others", folder)
        living = {name: tensor for name, tensor in living.items() if name not in rows}
    _refuse_other_tensors(living, stored, where=folder / WEIGHTS)
    with torch.no_grad():
        for name, tensor in living.items():
            tensor.copy_(stored[name])


def adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of an adapter.

    Args:
        folder: Of the adapter.

    Returns:
        Name in peft's words -> tensor in host memory.

    Raises:
        ModelError: When the file is missing or broken.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a file, not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS}: must be a whole safetensors file, but: {error}; restore it") from error


def _refuse_other_tensors(
    living: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor], *, where: Path
) -> None:
    missing, left_over = sorted(set(living) - set(stored)), sorted(set(stored) - set(living))
    faults = [f"must hold {name}, but does not" for name in missing]
    faults += [f"must not hold {name}, which the model has no place for, but does" for name in left_over]
    faults += [
        f"{name} must have shape {list(tensor.shape)}, but has {list(stored[name].shape)}"
        for name, tensor in living.items()
        if name in stored and tensor.shape != stored[name].shape
    ]
    if faults:
        raise ModelError(
            f"{where}: {faults[0]} ({len(faults)} such faults); name the model that the adapter was trained on"
        )
