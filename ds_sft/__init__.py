"""Fine-tune language models on conversations under DeepSpeed."""

from ds_sft.auto_classes import watch

__version__ = "0.1.0"

watch()
