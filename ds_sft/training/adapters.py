"""Puts a run's adapters on its model: new ones, or those of an earlier run."""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.config.arguments import LoraArguments, TrainingArguments
from ds_sft.config.parse import Settings
from ds_sft.contracts import Family
from ds_sft.data.collate import Rows
from ds_sft.data.datasets import SampleDataset
from ds_sft.model.adapter_config import read_adapter_config
from ds_sft.model.adapter_files import load_adapter
from ds_sft.model.folder import ModelFolder
from ds_sft.model.load import Frozen
from ds_sft.model.lora import Adapters, Base, attach_adapters, lora_config, say_how_much_trains
from ds_sft.model.lora_start import begin_at_inputs, make_up_for_4_bits
from ds_sft.model.vocab import new_token_ids
from ds_sft.training.collator import collator_for
from ds_sft.training.inputs import inputs_of

log = logging.getLogger(__name__)

_EVA_TOKENS = 8192
"""Of the first samples, in order; so many that each layer's inputs vary in more directions than adapters have."""


def frozen_as(lora: LoraArguments, *, family: Family) -> Frozen | None:
    """Tell how the model is held under adapters.

    Args:
        lora: The flags.
        family: Card of the model.

    Returns:
        None for a model that trains as a whole.
    """
    if not lora.is_asked:
        return None
    asked = _asked_config(lora, family=family)
    targets = asked.target_modules
    return Frozen(
        targets if isinstance(targets, str) else sorted(targets or ()),
        rank=asked.r,
        init=lora.lora_init,
        is_quantised=lora.q_lora,
    )


def with_adapters(
    model: PreTrainedModel,
    num_added: int,
    *,
    settings: Settings,
    args: TrainingArguments,
    folder: ModelFolder,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    samples: SampleDataset,
) -> Adapters | None:
    """Freeze the model and attach adapters, if the run asks for them.

    Args:
        model: With its vocabulary grown.
        num_added: Rows that its table was given.
        settings: Of the run.
        args: Tell seed and engine.
        folder: The model as it is stored.
        family: Its card.
        tokenizer: Grown too.
        samples: Of training; some ways to begin look at the first ones.

    Returns:
        None for a model that trains as a whole.
    """
    lora = settings.lora
    if not lora.is_asked:
        return None
    new_tokens = new_token_ids(family.special_tokens, family.other_tokens, tokenizer, model, num_added=num_added)
    is_scaled = family.fit_context(folder.config, args.model_max_length) != folder.config
    adapters = attach_adapters(
        model,
        _asked_config(lora, family=family),
        family=family,
        base=Base(settings.model.model_name_or_path, new_tokens, is_as_stored=not num_added and not is_scaled),
        seed=args.seed,
        holds_16_bits=bool(args.deepspeed),
    )
    say_how_much_trains(adapters)
    if lora.lora_init == "loftq":
        make_up_for_4_bits(adapters, stored=folder.path)
    if lora.lora_init == "eva":
        collate = collator_for(family, model, tokenizer, "right", is_flat=True, on_gpu=False)
        model.to(args.device)  # type: ignore[arg-type]  # transformers narrows torch's own signature
        inputs = inputs_of(collate(_first(samples)), device=args.device)
        del inputs["labels"]
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            begin_at_inputs(adapters, inputs)
    if lora.lora_weight_path:
        earlier = Path(lora.lora_weight_path).expanduser()
        load_adapter(adapters, earlier, config=read_adapter_config(earlier))
        log.info("going on with the adapter %s", lora.lora_weight_path)
    return adapters


def _asked_config(lora: LoraArguments, *, family: Family) -> LoraConfig:
    if lora.lora_weight_path:
        return read_adapter_config(Path(lora.lora_weight_path).expanduser()).in_words_of_peft()
    return lora_config(lora, family=family)


def _first(samples: SampleDataset) -> Rows:
    """Give the first samples, in order, until they have enough tokens on each side."""
    rows: list[Any] = []
    while len(rows) < len(samples) and min(_num_tokens(rows)) < _EVA_TOKENS:
        rows.append(samples[len(rows)])
    return rows


def _num_tokens(rows: Rows) -> tuple[int, int]:
    return sum(len(row["input_ids"]) for row in rows), sum(len(row["labels"]) for row in rows)
