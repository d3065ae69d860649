"""The card of Yuan2, the dense Yuan 2.0 models: what the rest of the house may know about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_sft.contracts import Family
from ds_sft.families.yuan2.native.rules import config_faults, fit_context
from ds_sft.families.yuan2.shape import PUBLISHED_CONFIGS, shape_of
from ds_sft.families.yuan2.template import lay_out, lay_out_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The imports below stand inside functions: reading a card must not load torch or transformers.


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from ds_sft.families.yuan2.tokenizer import load_tokenizer

    return load_tokenizer(folder)


def _encode_text(tokenizer: "PreTrainedTokenizerBase", text: str, *, is_continued: bool) -> list[int]:
    from ds_sft.families.yuan2.tokenizer import encode_text

    return encode_text(tokenizer, text, is_continued=is_continued)


def _model_class(config: Mapping[str, Any], stored_names: frozenset[str]) -> "type[PreTrainedModel]":
    from ds_sft.families.yuan2.modeling import model_class

    return model_class(config, stored_names)


def _published_config(model: "PreTrainedModel", config: dict[str, Any]) -> dict[str, Any]:
    from ds_sft.families.yuan2.modeling import published_config

    return published_config(model, config)


def _write_tiny_checkpoint(folder: Path, texts: Sequence[str]) -> None:
    from ds_sft.families.yuan2.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(folder, texts)


FAMILY = Family(
    name="yuan2",
    model_types=("yuan",),
    is_encoder_decoder=False,
    refused_precisions={},
    attentions=("sdpa", "eager", "flash_attention_2", "flex_attention"),
    sharing_attentions=("sdpa",),
    loss_modes=("last_response", "split_example", "efficient"),
    special_tokens={},
    other_tokens=(),
    lay_out=lay_out,
    lay_out_prompt=lay_out_prompt,
    answer_end="",
    config_faults=config_faults,
    shape_of=shape_of,
    published_configs=PUBLISHED_CONFIGS,
    fit_context=fit_context,
    auto_modules={
        "configuration_auto": "ds_sft.families.yuan2.native.configuration",
        "modeling_auto": "ds_sft.families.yuan2.native.model",
        "tokenization_auto": "ds_sft.families.yuan2.tokenizer",
    },
    load_tokenizer=_load_tokenizer,
    encode_text=_encode_text,
    model_class=_model_class,
    published_config=_published_config,
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    kept_in_16_bits=("lm_head",),
    write_tiny_checkpoint=_write_tiny_checkpoint,
)
