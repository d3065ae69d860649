"""Fine-tune Flan-T5 and Yuan2 on conversations under DeepSpeed."""

__version__ = "0.1.0"
