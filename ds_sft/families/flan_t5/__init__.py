"""Flan-T5 and the other T5 models: encoder-decoder, trained on question-answer pairs."""

from typing import Any

_SEEDS = {"smart_tokenizer_and_embedding_resize": "ds_sft.model.vocab", "train": "ds_sft.train"}
"""Names that programs import from here, and the rooms they live in."""


def __getattr__(name: str) -> Any:
    """Give a documented name from its room; only then is that room loaded."""
    if name not in _SEEDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_SEEDS[name]), name)
