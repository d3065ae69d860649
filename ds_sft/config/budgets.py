"""The most tokens of a micro-batch, from the flags; no torch."""

from collections.abc import Mapping
from typing import Any

BUDGETS = ("tokens_per_batch", "target_tokens_per_batch")
"""Flags that say them."""

Training = Mapping[str, Any]
"""Training arguments by name."""


def budgets_of(training: Training, *, is_encoder_decoder: bool) -> tuple[int, ...]:
    """Give the most tokens of a micro-batch in training.

    Args:
        training: With the flags.
        is_encoder_decoder: Whether targets have a budget of their own.

    Returns:
        For source and target, or for the one sequence there is.
    """
    derived = int(training["per_device_train_batch_size"] * training["model_max_length"])
    budgets = tuple(training[name] or derived for name in BUDGETS)
    return budgets if is_encoder_decoder else budgets[:1]
