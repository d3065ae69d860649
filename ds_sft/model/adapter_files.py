"""The tensors of an adapter on disk, in peft's form: held against a living model, and put into it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shortened

import torch
from peft.utils.constants import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from ds_sft.errors import ModelError
from ds_sft.model.adapter_config import AdapterConfig
from ds_sft.model.lora import Adapters
from ds_sft.zero.gather import full_shape, writable

log = logging.getLogger(__name__)


def load_adapter(adapters: Adapters, folder: Path, *, config: AdapterConfig) -> None:
    """Give adapters the values of a file; every rank must call this.

    Args:
        adapters: Of the same shape; what belongs to the model may be partitioned by ZeRO-3.
        folder: Of the adapter.
        config: Its settings.

    Raises:
        ModelError: When a tensor is missing, left over or of another shape, each by name, or has rows of other tokens.
    """
    living, stored = adapters.tensors(), adapter_tensors(folder)
    rows = set(adapters.row_names())
    if rows and config.trainable_token_indices is None and not rows & set(stored):
        log.warning("%s: has no rows of new tokens, so they begin at the mean of the others", folder)
        living = {name: tensor for name, tensor in living.items() if name not in rows}
    else:
        refuse_other_tokens(adapters, config, folder=folder)
    refuse_other_tensors(living, stored, where=folder / SAFETENSORS_WEIGHTS_NAME)
    for name, tensor in living.items():
        with writable([tensor]), torch.no_grad():
            tensor.copy_(stored[name])


def refuse_other_tokens(adapters: Adapters, config: AdapterConfig, *, folder: Path) -> None:
    """Make sure that an adapter has rows of the tokens that are new to the model, and of no others.

    Args:
        adapters: On the model.
        config: Settings of the file.
        folder: Of the adapter, for the message.

    Raises:
        ModelError: When it has others.
    """
    expected = adapters.config()["trainable_token_indices"]
    if (config.trainable_token_indices or None) != expected:
        raise ModelError(
            f"{folder / CONFIG_NAME}: trainable_token_indices must be {shortened(expected)}, the tokens that are new "
            f"to the model, but is {shortened(config.trainable_token_indices)}; name an adapter that was trained with "
            "them"
        )


def adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of an adapter.

    Args:
        folder: Of the adapter.

    Returns:
        Name in peft's words -> tensor in host memory.

    Raises:
        ModelError: When the file is missing or broken.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a file, not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: must be a whole safetensors file, but: {error}; restore it") from error


def refuse_other_tensors(
    living: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor], *, where: Path
) -> None:
    """Hold the tensors of a file against those of adapters.

    Args:
        living: Of the adapters; partitioned by ZeRO-3, or without storage, or not.
        stored: Of the file.
        where: It, for the message.

    Raises:
        ModelError: When one is missing, left over, of another shape, or holds no finite numbers.
    """
    missing, left_over = sorted(set(living) - set(stored)), sorted(set(stored) - set(living))
    faults = [f"must hold {name}, but does not" for name in missing]
    faults += [f"must not hold {name}, which the model has no place for, but does" for name in left_over]
    faults += [
        f"{name} must have shape {list(full_shape(tensor))}, but has {list(stored[name].shape)}"
        for name, tensor in living.items()
        if name in stored and full_shape(tensor) != stored[name].shape
    ]
    faults += [
        f"{name} must hold finite floating-point numbers, but does not ({tensor.dtype})"
        for name, tensor in stored.items()
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all())
    ]
    if faults:
        raise ModelError(
            f"{where}: {faults[0]} ({len(faults)} such faults); name the model that the adapter was trained on, or "
            "restore the file"
        )
