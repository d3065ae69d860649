"""Loads a model, partitioned from birth under ZeRO-3, and lets no weight be missing or left over."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import Family
from ds_sft.errors import ModelError, raise_together
from ds_sft.model.folder import ModelFolder
from ds_sft.model.lora_targets import target_faults
from ds_sft.model.quantisation import in_4_bits
from ds_sft.model.weights import Shapes, differing_ties, refuse_loading_faults, stored_shapes, weight_faults

log = logging.getLogger(__name__)

Made = TypeVar("Made")


@dataclass(frozen=True)
class Frozen:
    """How a model is held that only adapters train.

    Args:
        targets: Linear layers that must be there, or `all-linear`.
        rank: Of the adapters.
        init: What they begin with that is computed from matrices; None for zero.
        is_quantised: Whether in 4 bits.
    """

    targets: Sequence[str] | str
    rank: int
    init: str | None
    is_quantised: bool


@dataclass(frozen=True)
class Held:
    """How the weights of a model are held and used.

    Args:
        dtype: Their number format; in 4 bits that of the products.
        attention: For example `sdpa`.
        is_quantised: Whether linear layers are held in 4 bits.
    """

    dtype: torch.dtype
    attention: str
    is_quantised: bool = False


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
        ConfigError: When an adapter cannot be on such a layer; before any weight is read.
        ModelError: When weights are missing, left over or of another shape, each by name.
    """
    empty = empty_model(folder, family=family, max_tokens=args.model_max_length)
    if frozen:
        adds_tokens = bool(family.special_tokens or family.other_tokens)
        faults = target_faults(*(empty, frozen.targets), rank=frozen.rank, init=frozen.init, adds_tokens=adds_tokens)
        raise_together(list(faults))
    dtype = torch.bfloat16 if args.bf16 and (args.deepspeed or frozen) else torch.float32
    is_quantised = frozen is not None and frozen.is_quantised
    how = Held(dtype, attn_implementation, is_quantised=is_quantised)
    model = read_weights(empty, folder, family=family, how=how)
    model.train()
    return model


def read_weights(empty: PreTrainedModel, folder: ModelFolder, *, family: Family, how: Held) -> PreTrainedModel:
    """Read the weights of a model.

    Args:
        empty: From `empty_model`.
        folder: The checkpoint.
        family: Its card.
        how: Number format and attention.

    Returns:
        The model.

    Raises:
        ModelError: When weights are missing, left over or of another shape, each by name.
    """
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        loaded: Any = type(empty).from_pretrained(
            folder.path,
            config=empty.config,
            dtype=how.dtype,
            attn_implementation=how.attention,
            output_loading_info=True,
            **(in_4_bits(family, computes_in=how.dtype) if how.is_quantised else {}),
        )
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder.path}: weights must be loadable, but: {reason}; restore the files") from error
    model: PreTrainedModel = loaded[0]
    refuse_loading_faults(loaded[1], where=str(folder.path))
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
    empty = model_without_storage(kind, config, file=folder.path / "config.json")
    raise_together(weight_faults(empty, shapes, where=str(folder.path)))
    _untie_what_differs(folder, kind, empty, shapes)
    return empty


def _config(folder: ModelFolder, kind: type[PreTrainedModel], content: dict[str, Any]) -> PreTrainedConfig:
    """Make the config, and say what was changed to fit longer sequences."""
    for name, value in content.items():
        if value != folder.config.get(name):
            log.warning("%s: %s -> %s, to reach --model_max_length", name, folder.config.get(name), value)
    return config_of(kind, content, file=folder.path / "config.json")


def model_without_storage(kind: type[PreTrainedModel], config: PreTrainedConfig, *, file: Path) -> PreTrainedModel:
    """Make a model on the meta device, to learn its names, shapes and ties.

    Args:
        kind: Its class.
        config: Its config.
        file: Where the config stands, for the message.

    Returns:
        The model.

    Raises:
        ModelError: When no such model can be made.
    """
    with torch.device("meta"):
        return _made(lambda: kind(config), file=file)


def config_of(kind: type[PreTrainedModel], content: dict[str, Any], *, file: Path) -> PreTrainedConfig:
    """Make the config of a model.

    Args:
        kind: Class of the model.
        content: Plain data; no code that it names is run.
        file: Where it stands, for the message.

    Returns:
        The config.

    Raises:
        ModelError: When it describes no model.
    """
    return _made(lambda: _config_class(kind).from_dict(content), file=file)


def _config_class(kind: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    if kind.config_class is None:
        raise AssertionError(f"{kind.__name__} has no config class")
    return kind.config_class


def _made(make: Callable[[], Made], *, file: Path) -> Made:
    try:
        return make()
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{file}: must describe a model, but: {reason}; restore the file") from error


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
