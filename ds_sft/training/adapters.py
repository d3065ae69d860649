"""Puts a run's adapters on its model: new ones, or those of an earlier run."""

import logging
from pathlib import Path

from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.config.arguments import LoraArguments, TrainingArguments
from ds_sft.config.parse import Settings
from ds_sft.contracts import Family
from ds_sft.model.adapter_files import config_of, load_adapter, read_adapter_config
from ds_sft.model.folder import ModelFolder
from ds_sft.model.load import Frozen
from ds_sft.model.lora import Adapters, Base, attach_adapters, lora_config
from ds_sft.model.lora_start import make_up_for_4_bits
from ds_sft.model.vocab import new_token_ids

log = logging.getLogger(__name__)


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
    asked = _asked_config(lora, family=family).target_modules
    targets = asked if isinstance(asked, str) else sorted(asked or ())
    return Frozen(targets, is_quantised=lora.q_lora)


def with_adapters(
    model: PreTrainedModel,
    num_added: int,
    *,
    settings: Settings,
    args: TrainingArguments,
    folder: ModelFolder,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
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
    if lora.lora_init == "loftq":
        make_up_for_4_bits(adapters, stored=folder.path)
    if lora.lora_weight_path:
        load_adapter(adapters, Path(lora.lora_weight_path).expanduser())
        log.info("going on with the adapter %s", lora.lora_weight_path)
    return adapters


def _asked_config(lora: LoraArguments, *, family: Family) -> LoraConfig:
    if lora.lora_weight_path:
        return config_of(read_adapter_config(Path(lora.lora_weight_path).expanduser()))
    return lora_config(lora, family=family)
