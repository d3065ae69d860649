"""Loads a model, partitioned from birth under ZeRO-3, and lets no weight be missing or left over."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import Family
from ds_sft.errors import ModelError, raise_together
from ds_sft.model.folder import ModelFolder
from ds_sft.model.lora import refuse_unknown_targets
from ds_sft.model.quantisation import in_4_bits
from ds_sft.model.weights import Shapes, differing_ties, refuse_loading_faults, stored_shapes, weight_faults

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frozen:
    """How a model is held that only adapters train.

    Args:
        targets: Linear layers that must be there, or `all-linear`.
        is_quantised: Whether in 4 bits.
    """

    targets: Sequence[str] | str
    is_quantised: bool


def load_model(
    folder: ModelFolder,
    *,
    family: Family,
    args: TrainingArguments,
    attn_implementation: str,
    frozen: Frozen | None = None,
) -> PreTrainedModel:
    """Load a checkpoint with its family's class.

    Weights are held in fp32, and autocast computes in bf16; only under DeepSpeed, which keeps fp32 copies of its own,
    and where it is frozen, are they held in 16 bits. Under ZeRO-3, from_pretrained asks the living arguments for the
    partitioning.

    Args:
        folder: The checkpoint.
        family: Its card.
        args: Tell precision, engine and the length of sequences.
        attn_implementation: For example `sdpa`.
        frozen: For a model that only adapters train.

    Returns:
        The model in training mode.

    Raises:
        ConfigError: When there is no such layer for an adapter; before any weight is read.
        ModelError: When weights are missing, left over or of another shape, each by name.
    """
    empty = empty_model(folder, family=family, max_tokens=args.model_max_length)
    if frozen:
        refuse_unknown_targets(empty, frozen.targets)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    dtype = torch.bfloat16 if args.bf16 and (args.deepspeed or frozen) else torch.float32
    try:
        loaded: Any = type(empty).from_pretrained(
            folder.path,
            config=empty.config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **(in_4_bits(family, computes_in=dtype) if frozen and frozen.is_quantised else {}),
        )
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder.path}: weights must be loadable, but: {reason}; restore the files") from error
    model: PreTrainedModel = loaded[0]
    refuse_loading_faults(loaded[1], where=str(folder.path))
    model.train()
    return model


def empty_model(folder: ModelFolder, *, family: Family, max_tokens: int) -> PreTrainedModel:
    """Make the model of a checkpoint without storage, and hold it against the stored weights.

    Args:
        folder: The checkpoint.
        family: Its card.
        max_tokens: Length of sequences.

    Returns:
        The model on the meta device; a head that is stored with values of its own is not tied in its config.

    Raises:
        ModelError: When weights are missing, left over or of another shape, each by name.
    """
    shapes = stored_shapes(folder.path)
    kind = family.model_class(folder.config, frozenset(shapes))
    config = _config(folder, kind, family.fit_context(folder.config, max_tokens))
    empty = _empty_model(folder, kind, config)
    raise_together(weight_faults(empty, shapes, where=str(folder.path)))
    _untie_what_differs(folder, kind, empty, shapes)
    return empty


def _config(folder: ModelFolder, kind: type[PreTrainedModel], content: dict[str, Any]) -> PreTrainedConfig:
    """Make the config, and say what was changed to fit longer sequences."""
    for name, value in content.items():
        if value != folder.config.get(name):
            log.warning("%s: %s -> %s, to reach --model_max_length", name, folder.config.get(name), value)
    if kind.config_class is None:
        raise AssertionError(f"{kind.__name__} has no config class")
    try:
        return kind.config_class.from_dict(content)
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder.path / 'config.json'}: must describe a model, but: {reason}; restore the file"
        ) from error


def _empty_model(folder: ModelFolder, kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Make the model without storage, to learn its names, shapes and ties."""
    try:
        with torch.device("meta"):
            return kind(config)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder.path / 'config.json'}: must describe a model, but: {reason}; restore the file"
        ) from error


def _untie_what_differs(
    folder: ModelFolder, kind: type[PreTrainedModel], empty: PreTrainedModel, shapes: Shapes
) -> None:
    """Untie a head that is stored with values of its own: tied, it would be lost without a word."""
    differing = differing_ties(folder.path, empty, shapes)
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
