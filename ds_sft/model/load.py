"""Loads a model, partitioned from birth under ZeRO-3, and lets no weight be missing or left over."""

from typing import Any

import torch
from transformers import PreTrainedModel

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import Family
from ds_sft.errors import ModelError, raise_together
from ds_sft.model.folder import ModelFolder


def load_model(
    folder: ModelFolder, *, family: Family, args: TrainingArguments, attn_implementation: str
) -> PreTrainedModel:
    """Load a checkpoint with its family's class.

    Weights are held in fp32, and autocast computes in bf16; only under DeepSpeed, which keeps fp32 copies of its own,
    are they held in 16 bits. Under ZeRO-3, from_pretrained asks the living arguments for the partitioning.

    Args:
        folder: The checkpoint.
        family: Its card.
        args: Tell precision and engine.
        attn_implementation: `sdpa` or `eager`.

    Returns:
        The model in training mode.

    Raises:
        ModelError: When weights are missing, left over or of another shape, each by name.
    """
    kind = family.model_class(folder.config, folder.stored_names())
    dtype = torch.bfloat16 if args.bf16 and args.deepspeed else torch.float32
    try:
        loaded: Any = kind.from_pretrained(
            folder.path, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder.path}: weights must be loadable, but: {reason}; restore the files") from error
    model: PreTrainedModel = loaded[0]
    found: dict[str, set[Any]] = loaded[1]
    rules = {
        "missing_keys": "be stored",
        "unexpected_keys": "belong to the model",
        "mismatched_keys": "fit config.json",
    }
    raise_together(
        [
            ModelError(f"{folder.path}: weight {_name(key)} must {rule}, but does not; restore the files")
            for keys, rule in rules.items()
            for key in sorted(found[keys], key=str)
        ]
    )
    model.train()
    return model


def _name(key: object) -> str:
    """Give the name of a weight, with both shapes where they differ."""
    if isinstance(key, tuple):
        name, stored, expected = key
        return f"{name} (stored {list(stored)}, expected {list(expected)})"
    return str(key)
