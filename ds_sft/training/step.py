"""What a step takes: so many samples, or with packing so many micro-batches filled under budgets of tokens."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from ds_sft.config.budgets import BUDGETS, Training, budgets_of
from ds_sft.config.parse import Settings
from ds_sft.contracts import Family
from ds_sft.data.datasets import SampleDataset
from ds_sft.data.packing import Budgets, Lengths
from ds_sft.data.sharing import SampleTrees
from ds_sft.errors import ConfigError

log = logging.getLogger(__name__)

SAMPLES, MICRO_BATCHES = "samples of a step", "micro-batches of a step"
_ONLY_WITH_PADDING = {
    "train_sampling_strategy": ("group_by_length", "there is no padding to save, so the order is random"),
    "padding_side": ("left", "nothing is padded"),
}


def evaluation_budgets(training: Training, *, is_encoder_decoder: bool) -> Budgets:
    """Give the most tokens of a micro-batch in an evaluation.

    Args:
        training: With the flags.
        is_encoder_decoder: Whether targets have a budget of their own.

    Returns:
        As `budgets_of`.
    """
    budget = training["per_device_eval_batch_size"] * training["model_max_length"]
    return (budget, budget) if is_encoder_decoder else (budget,)


def lengths_of(samples: SampleDataset | SampleTrees, *, is_encoder_decoder: bool) -> Lengths:
    """Give the tokens that count against the budgets.

    Args:
        samples: With counted tokens, or trees of such.
        is_encoder_decoder: Whether targets have a budget of their own.

    Returns:
        One row for each budget.
    """
    lengths = samples.num_tokens()
    return lengths if is_encoder_decoder else lengths[1:]


def step_facts(training: Training, *, world_size: int) -> dict[str, Any]:
    """Give what must stay the same when a run goes on.

    Args:
        training: With the flags.
        world_size: Number of ranks.

    Returns:
        Plain data: the samples of a step; with packing the micro-batches of a step and their budgets.
    """
    micro_steps = training["gradient_accumulation_steps"] * world_size
    if not training["packing"]:
        return {SAMPLES: training["per_device_train_batch_size"] * micro_steps}
    budgets = budgets_of(training, is_encoder_decoder=True)
    # Only where it is on: checkpoints of runs without it stay as they were.
    sharing = {"share_prefixes": True} if training["share_prefixes"] else {}
    return {MICRO_BATCHES: micro_steps, **dict(zip(BUDGETS, budgets, strict=True)), **sharing}


def asked_batch(settings: Settings) -> list[int]:
    """Give the batch as the user asked for it, to know it again when the run goes on.

    Args:
        settings: As parsed.

    Returns:
        Micro-batch and accumulation.
    """
    return [settings.training["per_device_train_batch_size"], settings.training["gradient_accumulation_steps"]]


def packing_faults(settings: Settings) -> Iterator[ConfigError]:
    """Find budgets that hold nothing.

    Args:
        settings: As parsed.

    Yields:
        One error for each.
    """
    for name in BUDGETS:
        value = settings.training[name]
        if value is not None and value < 1:
            yield ConfigError(f"{name}: must be at least 1, but is {value}; give another value, or leave it out")


def say_what_packing_changes(settings: Settings, *, family: Family) -> None:
    """Say which flags have no effect with packing, or without it.

    Args:
        settings: As parsed.
        family: Of the checkpoint.
    """
    training = settings.training
    given = [name for name in BUDGETS if training[name] is not None]
    if not training["packing"]:
        for name in given:
            log.warning("%s: %d is ignored, because packing is False", name, training[name])
        return
    if BUDGETS[1] in given and not family.is_encoder_decoder:
        log.warning(
            *("%s: %d is ignored, because %s has no targets apart", BUDGETS[1], training[BUDGETS[1]], family.name)
        )
    asked = {"padding_side": settings.model.padding_side, **training}
    for name, (value, reason) in _ONLY_WITH_PADDING.items():
        if asked[name] == value:
            log.warning("%s: %s has no effect with packing: %s", name, value, reason)


def refuse_long_samples(samples: SampleDataset, training: Training, *, family: Family) -> None:
    """Refuse budgets that do not hold every sample.

    Args:
        samples: Of training.
        training: With the flags.
        family: Of the checkpoint.

    Raises:
        ConfigError: For the longest sample that does not fit.
    """
    if not training["packing"]:
        return
    budgets = budgets_of(training, is_encoder_decoder=family.is_encoder_decoder)
    lengths = lengths_of(samples, is_encoder_decoder=family.is_encoder_decoder)
    for name, budget, side in zip(BUDGETS, budgets, lengths, strict=False):
        longest = int(np.argmax(side))
        if side[longest] > budget:
            raise ConfigError(
                f"{name}: must hold every sample, but is {budget}, and sample {longest + 1} of "
                f"{samples.account.data} has {side[longest]} tokens; raise it to {side[longest]} or more, or lower "
                "--model_max_length"
            )


def told_budgets(training: Training, *, is_encoder_decoder: bool) -> str:
    """Put the budgets into words, with the equation of those that were not given.

    Args:
        training: With the flags.
        is_encoder_decoder: Whether targets have a budget of their own.

    Returns:
        Such as `up to 16384 source tokens (= 8 per_device_train_batch_size x 2048 model_max_length)`.
    """
    equation = "= {per_device_train_batch_size} per_device_train_batch_size x {model_max_length} model_max_length"
    sides = ("source tokens", "target tokens") if is_encoder_decoder else ("tokens",)
    budgets = budgets_of(training, is_encoder_decoder=is_encoder_decoder)
    return " and ".join(
        f"up to {budget} {side} ({f'--{name}' if training[name] else equation.format_map(training)})"
        for name, budget, side in zip(BUDGETS, budgets, sides, strict=False)
    )
