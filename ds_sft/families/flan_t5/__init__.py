"""Flan-T5 and the other T5 models: encoder-decoder, trained on question-answer pairs."""

from typing import Any

_SEEDS = {
    "DataArguments": "ds_sft.config.sources",
    "DataCollatorForSupervisedDataset": "ds_sft.data.collate",
    "LazySupervisedDataset": "ds_sft.data.datasets",
    "SupervisedDataset": "ds_sft.data.datasets",
    "_add_speaker_and_signal": "ds_sft.families.flan_t5.seeds",
    "_form_qa": "ds_sft.families.flan_t5.seeds",
    "_tokenize_fn": "ds_sft.families.flan_t5.seeds",
    "make_supervised_data_module": "ds_sft.families.flan_t5.seeds",
    "preprocess": "ds_sft.families.flan_t5.seeds",
    "smart_tokenizer_and_embedding_resize": "ds_sft.model.vocab",
    "train": "ds_sft.train",
}
"""Names that programs import from here, and the rooms they live in."""


def __getattr__(name: str) -> Any:
    """Give a documented name from its room; only then is that room loaded."""
    if name not in _SEEDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_SEEDS[name]), name)
