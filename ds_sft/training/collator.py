"""Picks the collator of a run, with the ids that tokenizer and config.json name."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.contracts import Family
from ds_sft.data.collate import (
    Collator,
    DataCollatorForCausalDataset,
    DataCollatorForSupervisedDataset,
    FlatCollatorForCausalDataset,
    FlatCollatorForSupervisedDataset,
    TreeCollatorForCausalDataset,
)
from ds_sft.errors import ModelError

_TENSOR_CORE_MULTIPLE = 8


def collator_for(
    family: Family,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    padding_side: Any,
    *,
    is_flat: bool,
    on_gpu: bool,
    shares_prefixes: bool = False,
) -> Collator:
    """Make the collator.

    Args:
        family: Card of the model.
        model: Whose config names pad and start; the start is written there where it is missing.
        tokenizer: Whose pad fills what the model reads.
        padding_side: Side on which inputs are padded.
        is_flat: Whether batches are flat instead of padded.
        on_gpu: Whether padded lengths are rounded up to what tensor cores like.
        shares_prefixes: Whether a flat batch is one of trees.

    Returns:
        The collator of the family's kind.

    Raises:
        ModelError: When an encoder-decoder has no pad.
    """
    multiple_of = _TENSOR_CORE_MULTIPLE if on_gpu else 1
    if not family.is_encoder_decoder:
        padded = DataCollatorForCausalDataset(tokenizer.pad_token_id, padding_side, multiple_of)
        flat = TreeCollatorForCausalDataset() if shares_prefixes else FlatCollatorForCausalDataset()
        return flat if is_flat else padded
    pad, start = _pad_and_start(model)
    if is_flat:
        return FlatCollatorForSupervisedDataset(decoder_start_token_id=start, decoder_pad_token_id=pad)
    return DataCollatorForSupervisedDataset(
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=start,
        decoder_pad_token_id=pad,
        padding_side=padding_side,
        multiple_of=multiple_of,
    )


def _pad_and_start(model: PreTrainedModel) -> tuple[int, int]:
    pad, start = model.config.pad_token_id, model.config.decoder_start_token_id
    if pad is None:
        raise ModelError(f"config.json: pad_token_id must be a number, but is {pad}; T5's own is 0")
    if start is None:
        # What training starts from, generation must start from as well.
        start = model.config.decoder_start_token_id = pad
        if model.generation_config is not None:
            model.generation_config.decoder_start_token_id = pad
    return pad, start
