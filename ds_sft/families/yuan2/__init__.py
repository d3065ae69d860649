"""Yuan2, the dense Yuan 2.0 models: decoder-only, trained on answers inside one sequence."""

from typing import Any

_SEEDS = {
    "DataArguments": "ds_sft.config.sources",
    "LazySupervisedDataset": "ds_sft.data.datasets",
    "ModelArguments": "ds_sft.config.sources",
    "SupervisedDataset": "ds_sft.data.datasets",
    "TrainingArguments": "ds_sft.config.arguments",
    "Yuan2Config": "ds_sft.families.yuan2.native.configuration",
    "Yuan2ForCausalLM": "ds_sft.families.yuan2.native.model",
    "Yuan2Model": "ds_sft.families.yuan2.native.model",
    "Yuan2Tokenizer": "ds_sft.families.yuan2.tokenizer",
    "make_supervised_data_module": "ds_sft.families.yuan2.seeds",
    "preprocess": "ds_sft.families.yuan2.seeds",
    "train": "ds_sft.train",
    "trainer_save_model_safe": "ds_sft.families.yuan2.seeds",
}
"""Names that programs import from here, and the rooms they live in."""


def __getattr__(name: str) -> Any:
    """Give a documented name from its room; only then is that room loaded."""
    if name not in _SEEDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_SEEDS[name]), name)
