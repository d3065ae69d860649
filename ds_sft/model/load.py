"""Loads a model, partitioned from birth under ZeRO-3, and lets no weight be missing or left over."""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from ds_sft.config.arguments import TrainingArguments
from ds_sft.contracts import Family
from ds_sft.errors import DsSftError, ModelError, raise_together
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
    shapes = folder.stored_shapes()
    kind = family.model_class(folder.config, frozenset(shapes))
    if shapes:
        raise_together(_weight_faults(folder, kind, shapes))
        raise_together(_tie_faults(folder, kind, shapes))
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    dtype = torch.bfloat16 if args.bf16 and args.deepspeed else torch.float32
    try:
        loaded: Any = kind.from_pretrained(
            folder.path, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        if shapes and not isinstance(error, OSError | KeyError):
            # The headers were checked: any other fault is the engine's and not the weights'.
            raise
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder.path}: weights must be loadable, but: {reason}; restore the files") from error
    model: PreTrainedModel = loaded[0]
    found: dict[str, set[Any]] = loaded[1]
    # Pickled weights tell their names only now.
    raise_together([_must(folder, name, "be stored") for name in sorted(found["missing_keys"])])
    raise_together([_must(folder, name, "belong to the model") for name in sorted(found["unexpected_keys"])])
    model.train()
    return model


def _weight_faults(
    folder: ModelFolder, kind: type[PreTrainedModel], shapes: Mapping[str, tuple[int, ...]]
) -> list[DsSftError]:
    """Hold the stored weights against those of an empty model, because transformers is silent under ZeRO-3."""
    if kind.config_class is None:
        raise AssertionError(f"{kind.__name__} has no config class")
    try:
        config = kind.config_class.from_dict(folder.config)
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        return [ModelError(f"{folder.path / 'config.json'}: must describe a model, but: {reason}; restore the file")]
    shared = set(kind._tied_weights_keys or {})  # noqa: SLF001  # transformers offers no public way to ask
    ignored = [re.compile(pattern) for pattern in kind._keys_to_ignore_on_load_unexpected or ()]  # noqa: SLF001
    faults = [_must(folder, name, "be stored") for name in expected if name not in shapes and name not in shared]
    for name, shape in shapes.items():
        if name not in expected:
            if not any(pattern.search(name) for pattern in ignored):
                faults.append(_must(folder, name, "belong to the model"))
        elif shape != expected[name]:
            faults.append(_must(folder, f"{name} of shape {list(shape)}", f"have shape {list(expected[name])}"))
    return faults


def _tie_faults(
    folder: ModelFolder, kind: type[PreTrainedModel], shapes: Mapping[str, tuple[int, ...]]
) -> list[DsSftError]:
    """Refuse to tie weights that are stored with different values: one of them would be lost without a word."""
    pairs = [pair for pair in (kind._tied_weights_keys or {}).items() if set(pair) <= set(shapes)]  # noqa: SLF001
    return [
        ModelError(
            f"{folder.path}: {alias} must equal {source} in a checkpoint whose config.json ties them, but differs; "
            "set tie_word_embeddings to false there"
        )
        for alias, source in pairs
        if not torch.equal(folder.stored_weight(alias), folder.stored_weight(source))
    ]


def _must(folder: ModelFolder, weight: str, rule: str) -> DsSftError:
    return ModelError(f"{folder.path}: weight {weight} must {rule}, but does not; restore the files")
