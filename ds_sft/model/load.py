"""Loads a model, partitioned from birth under ZeRO-3, and lets no weight be missing or left over."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import Family
from ds_sft.errors import DsSftError, ModelError, raise_together
from ds_sft.model.folder import ModelFolder
from ds_sft.model.weights import refuse_loading_faults, stored_shapes, stored_weight, weight_fault

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


def load_model(
    folder: ModelFolder, *, family: Family, args: TrainingArguments, attn_implementation: str
) -> PreTrainedModel:
    """Load a checkpoint with its family's class.

    Weights are held in fp32, and autocast computes in bf16; only under DeepSpeed, which keeps fp32 copies of its own,
    are they held in 16 bits. Under ZeRO-3, from_pretrained asks the living arguments for the partitioning.

    Args:
        folder: The checkpoint.
        family: Its card.
        args: Tell precision, engine and the length of sequences.
        attn_implementation: For example `sdpa`.

    Returns:
        The model in training mode.

    Raises:
        ModelError: When weights are missing, left over or of another shape, each by name.
    """
    shapes = stored_shapes(folder.path)
    kind = family.model_class(folder.config, frozenset(shapes))
    config = _config(folder, kind, family.fit_context(folder.config, args.model_max_length))
    empty = _empty_model(folder, kind, config)
    raise_together(_weight_faults(folder, kind, empty, shapes))
    _untie_what_differs(folder, kind, empty, shapes)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    dtype = torch.bfloat16 if args.bf16 and args.deepspeed else torch.float32
    try:
        loaded: Any = kind.from_pretrained(
            folder.path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
        )
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder.path}: weights must be loadable, but: {reason}; restore the files") from error
    model: PreTrainedModel = loaded[0]
    refuse_loading_faults(loaded[1], where=str(folder.path))
    model.train()
    return model


def _config(folder: ModelFolder, kind: type[PreTrainedModel], content: dict[str, Any]) -> PreTrainedConfig:
    """Make the config, and say what was changed to fit longer sequences."""
    for name, value in content.items():
        if value != folder.config.get(name):
            log.warning("%s: %s -> %s, to reach --model_max_length", name, folder.config.get(name), value)
    if kind.config_class is None:
        raise AssertionError(f"{kind.__name__} has no config class")
    try:
        return kind.config_class.from_dict(content)
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder.path / 'config.json'}: must describe a model, but: {reason}; restore the file"
        ) from error


def _empty_model(folder: ModelFolder, kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Make the model without storage, to learn its names, shapes and ties."""
    try:
        with torch.device("meta"):
            return kind(config)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder.path / 'config.json'}: must describe a model, but: {reason}; restore the file"
        ) from error


def _weight_faults(
    folder: ModelFolder, kind: type[PreTrainedModel], empty: PreTrainedModel, shapes: Shapes
) -> list[DsSftError]:
    """Hold the stored weights against those of an empty model, because transformers is silent under ZeRO-3."""
    where = str(folder.path)
    if not shapes:
        return [ModelError(f"{where}: folder must hold weights, but has none; fetch it again")]
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    shared = set(empty.all_tied_weights_keys)
    ignored = [re.compile(pattern) for pattern in kind._keys_to_ignore_on_load_unexpected or ()]  # noqa: SLF001
    faults = [weight_fault(where, name, "be stored") for name in expected if name not in shapes and name not in shared]
    for name, shape in shapes.items():
        if name not in expected:
            if not any(pattern.search(name) for pattern in ignored):
                faults.append(weight_fault(where, name, "belong to the model"))
        elif shape != expected[name]:
            told = f"{name} of shape {list(shape)}"
            faults.append(weight_fault(where, told, f"have shape {list(expected[name])}"))
    return faults


def _untie_what_differs(
    folder: ModelFolder, kind: type[PreTrainedModel], empty: PreTrainedModel, shapes: Shapes
) -> None:
    """Untie a head that is stored with values of its own: tied, it would be lost without a word."""
    pairs = [pair for pair in empty.all_tied_weights_keys.items() if set(pair) <= set(shapes)]
    differing = [
        (alias, source)
        for alias, source in pairs
        if not torch.equal(stored_weight(folder.path, alias), stored_weight(folder.path, source))
    ]
    if not differing:
        return
    config = empty.config
    config.tie_word_embeddings = False
    alias, source = differing[0]
    if alias in _ties(kind, config):
        raise ModelError(
            f"{folder.path}: {alias} must equal {source} in a checkpoint whose config.json ties them, but differs; "
            "set tie_word_embeddings to false there"
        )
    log.warning("tie_word_embeddings: True -> False, because the stored %s differs from %s", alias, source)


def _ties(kind: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, str]:
    """Give what a model of this config ties; a class may tie whatever the config says."""
    with torch.device("meta"):
        return dict(kind(kind.config_class.from_dict(config.to_dict())).all_tied_weights_keys)  # type: ignore[union-attr]  # checked in _config
