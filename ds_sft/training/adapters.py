"""Puts a run's adapters on its model: new ones, or those of an earlier run."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.config.arguments import LoraArguments, TrainingArguments
from ds_sft.config.parse import Settings
from ds_sft.contracts import Family
from ds_sft.data.collate import Rows
from ds_sft.data.datasets import SampleDataset
from ds_sft.model.adapter_config import AdapterConfig, read_adapter_config
from ds_sft.model.adapter_files import load_adapter
from ds_sft.model.folder import ModelFolder
from ds_sft.model.load import Frozen
from ds_sft.model.lora import Adapters, Base, attach_adapters, lora_config
from ds_sft.model.lora_start import begin_at_inputs, make_up_for_4_bits
from ds_sft.model.vocab import new_token_ids
from ds_sft.training.collator import collator_for
from ds_sft.training.inputs import inputs_of

log = logging.getLogger(__name__)

_EVA_TOKENS = 8192
"""Of the first samples, in order; so many that each layer's inputs vary in more directions than adapters have."""


@dataclass(frozen=True)
class Earlier:
    """An adapter that goes on.

    Args:
        folder: Its folder.
        config: Its settings, read once: the file may change while the model is loaded.
    """

    folder: Path
    config: AdapterConfig


def earlier_adapter(lora: LoraArguments) -> Earlier | None:
    """Read the settings of the adapter that goes on.

    Args:
        lora: The flags.

    Returns:
        None where adapters are new, or none are asked for.
    """
    if lora.lora_weight_path is None:
        return None
    folder = Path(lora.lora_weight_path).expanduser()
    return Earlier(folder, read_adapter_config(folder))


def frozen_as(lora: LoraArguments, *, family: Family, earlier: Earlier | None) -> Frozen | None:
    """Tell how the model is held under adapters.

    Args:
        lora: The flags.
        family: Card of the model.
        earlier: The adapter that goes on.

    Returns:
        None for a model that trains as a whole.
    """
    if not lora.is_asked:
        return None
    asked = earlier.config.in_words_of_peft() if earlier else lora_config(lora, family=family)
    targets = asked.target_modules
    return Frozen(
        targets if isinstance(targets, str) else sorted(targets or ()),
        rank=asked.r,
        init=lora.lora_init,
        is_quantised=lora.q_lora,
    )


def with_adapters(  # noqa: PLR0913  # the parts of a run
    model: PreTrainedModel,
    num_added: int,
    *,
    settings: Settings,
    args: TrainingArguments,
    folder: ModelFolder,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    samples: SampleDataset,
    earlier: Earlier | None,
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
        earlier: The adapter that goes on.

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
        earlier.config.in_words_of_peft() if earlier else lora_config(lora, family=family),
        family=family,
        base=Base(settings.model.model_name_or_path, new_tokens, is_as_stored=not num_added and not is_scaled),
        seed=args.seed,
        holds_16_bits=bool(args.deepspeed),
    )
    if lora.lora_init == "loftq":
        make_up_for_4_bits(adapters, stored=folder.path)
    if lora.lora_init == "eva":
        collate = collator_for(family, model, tokenizer, "right", is_flat=True, on_gpu=False)
        model.to(args.device)  # type: ignore[arg-type]  # transformers narrows torch's own signature
        inputs = inputs_of(collate(_first(samples)), device=args.device)
        del inputs["labels"]
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            begin_at_inputs(adapters, inputs)
    if earlier:
        load_adapter(adapters, earlier.folder, config=earlier.config)
        log.info("going on with the adapter %s", earlier.folder)
    return adapters


def _first(samples: SampleDataset) -> Rows:
    """Give the first samples, in order, until they have enough tokens on each side."""
    rows: list[Any] = []
    while len(rows) < len(samples) and min(_num_tokens(rows)) < _EVA_TOKENS:
        rows.append(samples[len(rows)])
    return rows


def _num_tokens(rows: Rows) -> tuple[int, int]:
    return sum(len(row["input_ids"]) for row in rows), sum(len(row["labels"]) for row in rows)
