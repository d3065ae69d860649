"""Whether samples of a conversation share what they begin with: on where it changes no number, else off, and told."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ds_sft.config.arguments import LoraArguments, TrainingArguments
from ds_sft.config.budgets import budgets_of
from ds_sft.config.parse import Settings
from ds_sft.contracts import Family
from ds_sft.data.sharing import SampleTrees
from ds_sft.model.adapter_config import read_adapter_config
from ds_sft.training.step import evaluation_budgets

log = logging.getLogger(__name__)

_SPLITS = "split_example"


def with_sharing_settled(settings: Settings, *, family: Family) -> Settings:
    """Decide `share_prefixes` where it was not given, and turn it off where shared tokens would count otherwise.

    Args:
        settings: Without faults.
        family: Card of the model.

    Returns:
        The same with `share_prefixes` True or False; why it is off is told.
    """
    asked = settings.training["share_prefixes"]
    splits = _SPLITS in settings.data.loss_modes()
    reason = _reason_against(settings, family) if splits else "only --split_example_loss has samples that share"
    if reason and asked:
        log.warning("share_prefixes: True -> False, because %s", reason)
    elif reason and splits and asked is None:
        log.info("share_prefixes: off, because %s", reason)
    is_on = reason is None and asked is not False
    return replace(settings, training={**settings.training, "share_prefixes": is_on})


def training_units(samples: Any, args: TrainingArguments) -> Any:
    """Give what micro-batches of training are made of, and tell what sharing saves.

    Args:
        samples: With counted tokens where they share some.
        args: Say whether they do.

    Returns:
        The samples, or trees of them.
    """
    if not args.share_prefixes:
        return samples
    trees = SampleTrees(samples, budget=budgets_of(vars(args), is_encoder_decoder=False)[0])
    stored, whole = (int(each.num_tokens().sum(dtype=np.int64)) for each in (trees, samples))
    log.info(
        "share_prefixes: %d samples of %d tokens become %d trees of %d tokens, %.2f times fewer",
        *(len(samples), whole, len(trees), stored, whole / stored),
    )
    return trees


def evaluation_units(samples: Any, args: TrainingArguments) -> Any:
    """Give what micro-batches of an evaluation are made of.

    Args:
        samples: With counted tokens where they share some.
        args: Say whether they do.

    Returns:
        The samples, or trees of them.
    """
    if not args.share_prefixes:
        return samples
    return SampleTrees(samples, budget=evaluation_budgets(vars(args), is_encoder_decoder=False)[0])


def _reason_against(settings: Settings, family: Family) -> str | None:
    """Tell why shared tokens would count otherwise than in samples of their own, or cannot be shared."""
    attention, dropout = settings.model.attn_implementation, _dropout_of(settings.lora)
    if not settings.training["packing"]:
        return "packing is False"
    if not family.sharing_attentions:
        return f"in {family.name} what comes later changes the states of what came before"
    if attention not in family.sharing_attentions:
        return f"attn_implementation is {attention}, and only {' or '.join(family.sharing_attentions)} follows branches"
    if dropout:
        return f"lora_dropout is {dropout}, which would fall alike on all samples; pass --lora_dropout 0 to share"
    return None


def _dropout_of(lora: LoraArguments) -> float:
    if lora.lora_weight_path:
        return read_adapter_config(Path(lora.lora_weight_path).expanduser()).lora_dropout
    return lora.lora_dropout if lora.is_asked else 0.0
