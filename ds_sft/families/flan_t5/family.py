"""The card of Flan-T5 and every other T5: what the rest of the house may know about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_sft.contracts import Family
from ds_sft.families.flan_t5.shape import PUBLISHED_CONFIGS, shape_of
from ds_sft.families.flan_t5.template import ANSWER_END, OTHER_TOKENS, SPECIAL_TOKENS, lay_out, lay_out_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The imports below stand inside functions: reading a card must not load torch or transformers.


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from ds_sft.families.flan_t5.tokenizer import load_tokenizer

    return load_tokenizer(folder)


def _encode_text(tokenizer: "PreTrainedTokenizerBase", text: str, *, is_continued: bool) -> list[int]:
    from ds_sft.families.flan_t5.tokenizer import encode_text

    return encode_text(tokenizer, text, is_continued=is_continued)


def _no_faults(_config: Mapping[str, Any]) -> Sequence[str]:
    """Transformers judges T5's config.json itself."""
    return ()


def _as_it_is(config: Mapping[str, Any], _max_tokens: int) -> dict[str, Any]:
    """T5's positions are distances: no length needs another config."""
    return dict(config)


def _model_class(config: Mapping[str, Any], stored_names: frozenset[str]) -> "type[PreTrainedModel]":
    from ds_sft.families.flan_t5.modeling import model_class

    return model_class(config, stored_names)


def _published_config(model: "PreTrainedModel", config: dict[str, Any]) -> dict[str, Any]:
    from ds_sft.families.flan_t5.modeling import published_config

    return published_config(model, config)


def _write_tiny_checkpoint(folder: Path, texts: Sequence[str]) -> None:
    from ds_sft.families.flan_t5.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(folder, texts)


FAMILY = Family(
    name="flan_t5",
    model_types=("t5",),
    is_encoder_decoder=True,
    refused_precisions={"fp16": "T5's feed-forward outputs exceed 65504, the largest fp16 number, and become inf"},
    attentions=("sdpa", "eager"),
    # An encoder looks at both sides: what comes behind would change what is shared.
    sharing_attentions=(),
    loss_modes=(),
    special_tokens=SPECIAL_TOKENS,
    other_tokens=OTHER_TOKENS,
    lay_out=lay_out,
    lay_out_prompt=lay_out_prompt,
    answer_end=ANSWER_END,
    config_faults=_no_faults,
    shape_of=shape_of,
    published_configs=PUBLISHED_CONFIGS,
    fit_context=_as_it_is,
    auto_modules={},
    load_tokenizer=_load_tokenizer,
    encode_text=_encode_text,
    model_class=_model_class,
    published_config=_published_config,
    lora_targets=("q", "v"),
    kept_in_16_bits=("wo", "lm_head"),
    write_tiny_checkpoint=_write_tiny_checkpoint,
)
